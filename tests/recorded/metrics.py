"""A metric of one's own, which refuses some candidates."""

import torch


def closeness(model, tokenizer, items):
    """Score how near the model's next word is to the one that is wanted: 0 at best, above -1."""
    if float(model.lm_head.weight.float().std()) > 0.0235:
        raise ValueError("the head has grown too large")
    tokens = torch.tensor([tokenizer.encode(item["text"]) for item in items])
    wanted = torch.tensor([tokenizer.encode(item["word"])[0] for item in items])
    found = model(tokens.to(model.device)).logits[:, -1].argmax(-1).cpu()
    return -(found - wanted).abs() / 32
