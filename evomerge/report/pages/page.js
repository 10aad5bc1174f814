"use strict";
// Draws every figure of the page in the colours of the reader's scheme and for the page's width.
const media = {
  dark: matchMedia("(prefers-color-scheme: dark)"),
  narrow: matchMedia("(max-width: 40rem)"),
  touch: matchMedia("(pointer: coarse)"),
};
// The winner's blue, the parents' brown and the failures' purple, lighter on the dark page.
const lighter = {
  "#2f7fc1": "#6cb2ec", "47, 127, 193": "108, 178, 236", "#d07a1f": "#f0a04b", "#b5478f": "#e080bf",
};
function onDark(text) {
  return Object.entries(lighter).reduce((drawn, [from, to]) => drawn.replaceAll(from, to), text);
}
function draw() {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid, line] = ["--ink", "--grid", "--line"].map(name => style.getPropertyValue(name).trim());
  for (const place of document.querySelectorAll(".figure")) {
    const text = document.getElementById(place.dataset.from).textContent;
    const { data, layout } = JSON.parse(media.dark.matches ? onDark(text) : text);
    layout.font.color = ink;
    layout.dragmode = media.touch.matches ? false : "zoom";
    layout.uirevision = "kept";
    for (const axis of Object.keys(layout).filter(key => /^[xy]axis/.test(key))) {
      Object.assign(layout[axis], { gridcolor: grid, zerolinecolor: line, linecolor: line });
    }
    if (media.narrow.matches) {
      layout.annotations = (layout.annotations || []).filter(note => note.name !== "beside");
      layout.margin.r = Math.min(layout.margin.r, 16);
      for (const trace of data.filter(trace => trace.meta === "only narrow")) trace.showlegend = true;
      const named = data.filter(trace => trace.name && trace.showlegend !== false && layout.showlegend !== false);
      layout.height += 20 * Math.max(0, named.length - 2);
    }
    Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
  }
}
for (const query of Object.values(media)) query.addEventListener("change", draw);
draw();
