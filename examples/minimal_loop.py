"""The whole idea of rankwise in one flat file: train ranks, score pairs, count what flipped.

No config, no records, no resume, no report: peft, transformers and forty lines of loop.

    python examples/minimal_loop.py [MODEL_FOLDER]
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

RANKS = (2, 8)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
PLACES = ["town", "north", "story", "photo", "valley", "garden", "film", "song"]


def items(places):
    """Questions with the answer's index among the options."""
    options = list(COLOURS.values())
    for place in places:
        for thing, colour in COLOURS.items():
            prompt = f"Question: in the {place}, which colour has the {thing}?\nAnswer:"
            yield prompt, [f" {option}" for option in options], options.index(colour)


def completion_nats(model, tokenizer, prompt, completion):
    """Summed cross-entropy of the completion's tokens, with gradients where they are wanted."""
    read = tokenizer(prompt).input_ids
    start = len(read)  # a token that straddles both is in neither, as in lm-eval
    tokens = torch.tensor([read + tokenizer(prompt + completion).input_ids[start:]])
    logits = model(tokens).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, tokens[0, start:], reduction="sum")


@torch.no_grad()
def right_answers(model, tokenizer, test):
    """For each item, whether the likeliest option is the right one."""
    model.eval()
    right = []
    for prompt, options, gold in test:
        nats = [float(completion_nats(model, tokenizer, prompt, option)) for option in options]
        right.append(nats.index(min(nats)) == gold)
    return right


def train(base, tokenizer, examples, rank, seed=0):
    """Put a fresh adapter on the frozen base and train it, eight examples a step."""
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    model.train()
    for _ in range(3):
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(order), 8):
            batch = order[start : start + 8]
            for index in batch:
                prompt, options, gold = examples[index]
                completion = options[gold] + tokenizer.eos_token
                (completion_nats(model, tokenizer, prompt, completion) / len(batch)).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model


def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_kernels=False)
    examples, test = list(items(PLACES[:5])), list(items(PLACES[5:]))
    before = right_answers(base, tokenizer, test)
    print(f"base: {sum(before)}/{len(test)} right")
    for rank in RANKS:
        adapted = train(base, tokenizer, examples, rank)
        after = right_answers(adapted, tokenizer, test)
        learned = sum(a and not b for a, b in zip(after, before, strict=True))
        forgotten = sum(b and not a for a, b in zip(after, before, strict=True))
        flipped = learned + forgotten
        p_value = binomtest(learned, flipped).pvalue if flipped else 1.0
        print(
            f"rank {rank}: {sum(after)}/{len(test)} right, {learned} learned, "
            f"{forgotten} forgotten, exact McNemar p = {p_value:.3f}"
        )
        base = adapted.unload()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        from rankwise.engine.models.embedded import SMOLLM2, embedded_model_folder

        main(str(embedded_model_folder(SMOLLM2, print)))
