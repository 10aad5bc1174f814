"use strict";
// Fetches what the page shows, again and again, and puts it in place of what it showed before.
const main = document.querySelector("main");
const pause = 1000 * Number(document.body.dataset.seconds);
let version = null;

function show(html) {
  const opened = [...main.querySelectorAll("details[open]")].map(found => found.id);
  const drawn = new Map([...main.querySelectorAll(".figure")].map(found => [found.id, found]));
  main.innerHTML = html;
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  for (const place of main.querySelectorAll(".figure")) {
    if (drawn.has(place.id)) place.replaceWith(drawn.get(place.id));  // a zoom stays, no flicker
  }
  draw();
}

function tick() {
  for (const moment of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(moment.dateTime)) / 1000);
    const [count, unit] = seconds < 90 ? [seconds, "s"] : seconds < 5400 ? [seconds / 60, "min"]
      : seconds < 172800 ? [seconds / 3600, "h"] : [seconds / 86400, "days"];
    moment.textContent = `${Math.round(count)} ${unit} ago`;
  }
}

async function look() {
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch("content", { headers: version ? { "If-None-Match": version } : {}, cache: "no-store" });
    if (answer.status === 200) {
      version = answer.headers.get("ETag");
      show(await answer.text());
    } else if (answer.status !== 304) {
      throw new Error(await answer.text());
    }
    lost.hidden = true;
  } catch (error) {
    lost.textContent = `Not up to date: ${error.message}`;
    lost.hidden = false;
  }
  tick();
  setTimeout(look, pause);
}

setInterval(tick, 1000);
look();
