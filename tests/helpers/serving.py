"""A small OpenAI-like server over a checkpoint: completions with log-probabilities, and chats."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Server(ThreadingHTTPServer):
    """Answers with the checkpoint it was told to load last; `/reload` loads one.

    It has the end points of vLLM and SGLang that load weights in place. As vLLM would with what it
    remembers of prompts, it answers with the last checkpoint until its prefix cache is emptied.

    Attributes:
        loaded: the folders it was told to load, in their order.
        told: path and payload of what was asked of end points of vLLM and SGLang.
        dev: whether it has those of vLLM.
        held: how often it does not empty its prefix cache.
        refuses: what it answers to new weights, while it is set: status and payload.
        seen: the payloads of everything else.
        broken: what it answers instead, as an HTTP status, while it is set.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded, self.seen, self.broken = [], [], None
        self.told, self.dev, self.held, self.refuses, self._new = [], True, 0, None, None
        self.model = self.tokenizer = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def address(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def load(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.loaded.append(folder)

    def in_place(self, path, asked):
        """Status and answer of an end point of vLLM or SGLang."""
        if path != "/update_weights_from_disk" and not self.dev:
            return 404, {"detail": "Not Found"}
        self.told.append((path, asked))
        if path == "/reset_prefix_cache":
            self.held -= 1
            if self.held < 0 and self._new:
                self.load(self._new)
            return 200, {"success": self.held < 0}
        if self.refuses:
            return self.refuses
        if path == "/collective_rpc":
            self._new = asked["kwargs"]["weights_path"]
            return 200, {"results": [None]}
        self.load(asked["model_path"])
        return 200, {"success": True, "message": "Succeeded", "num_paused_requests": 0}

    def completions(self, asked):
        prompts = asked["prompt"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        answer = self.scored if asked.get("echo") else self.said
        return [
            {"index": i, **answer([int(token) for token in prompt], asked)}
            for i, prompt in enumerate(prompts)
        ]

    def chat(self, asked):
        prompt = self.tokenizer.apply_chat_template(
            asked["messages"], tokenize=False, add_generation_prompt=True
        )
        said = self.said(self.tokenizer.encode(prompt), asked)
        message = {"role": "assistant", "content": said["text"]}
        return [{"index": 0, "message": message, "finish_reason": said["finish_reason"]}]

    @torch.inference_mode()
    def scored(self, tokens, asked):
        """The prompt's tokens with their log-probabilities, and one token more."""
        logprobs = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        tokens = [*tokens, int(logprobs[-1].argmax())]
        own = [float(row[token]) for row, token in zip(logprobs, tokens[1:], strict=True)]
        top = [{str(int(row.argmax())): float(row.max())} for row in logprobs]
        return {"logprobs": {"token_logprobs": [None, *own], "top_logprobs": [None, *top]}}

    @torch.inference_mode()
    def said(self, tokens, asked):
        start, text = len(tokens), ""
        for _ in range(asked["max_tokens"]):
            tokens = [*tokens, int(self.model(torch.tensor([tokens])).logits[0, -1].argmax())]
            text = self.tokenizer.decode(tokens[start:], skip_special_tokens=True)
            if tokens[-1] == self.tokenizer.eos_token_id:
                return {"text": text, "finish_reason": "stop"}
            for stop in asked["stop"]:
                if stop in text:
                    return {"text": text.partition(stop)[0], "finish_reason": "stop"}
        return {"text": text, "finish_reason": "length"}


class Handler(BaseHTTPRequestHandler):
    """Routes requests to the server's methods."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
        if self.server.broken:
            return self.send_error(self.server.broken)
        if self.path == "/reload":
            self.server.load(body["checkpoint"])
            return self.reply({"loaded": True})
        if self.path in ("/collective_rpc", "/reset_prefix_cache", "/update_weights_from_disk"):
            status, content = self.server.in_place(self.path, body)
            return self.reply(content, status)
        self.server.seen.append(body)
        chat = self.path.endswith("/chat/completions")
        choices = (self.server.chat if chat else self.server.completions)(body)
        return self.reply({"choices": choices})

    def reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
