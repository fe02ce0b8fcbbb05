"""Scoring many adapters on one base.

``tasks.questions.Scorer`` is what every engine offers: score continuations, continue prompts, each
for several models at once. A model's answers do not depend on the others in the call.

**Log-likelihoods** (``tree``). All token sequences of a call form a prefix tree. It is read from
left to right in steps under a token budget, by all models at once: the base's products cover models
x places rows, and each adapter adds to its own. So a model reads a few-shot preamble once for all
items, and a question once for all options. Logits exist at scored positions only; the log-softmax
is taken in float32.

**Texts** (``decode``). A row is a prompt and a model. Every forward pass has the newest token of
each row, and the prompts of rows that begin; when a row ends, another takes its place. Keys and
values lie in preallocated blocks, and a prefix that many prompts share lies in its own segment,
once per model. A sampled text has its own random generator, seeded by the text's name.

On CUDA products keep all bits of float32 whatever was set before. Index tensors go there from
pinned memory, and nothing is read back before a step's answers are there:
``tests/engine/test_fake_cuda.py`` has a list of all places that wait for the card.
"""
