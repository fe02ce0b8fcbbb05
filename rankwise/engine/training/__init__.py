"""Training many adapters, or all weights, on one base.

    trainees ─effective batches─▶ loop ──micro-batches───▶ base model, once for all rows
        ▲                                                       │  trained_adapters: A and B of each
        │                                                       │  adapter, on its rows
        └── an AdamW step of each ◀── gradients ◀── head ◀── packed_attention

A **trainee** is one run during training: data order, rate, optimizer and saved state, all from its
seed. In a **pass** all trainees take their steps together. ``loop`` cuts their batches into
micro-batches under a token budget, without padding; ``packed_attention`` keeps sequences apart.
``trained_adapters`` wraps the adapted layers: the frozen product covers all rows, and each adapter
multiplies its own. ``head`` makes logits only at tokens that have a loss, in chunks.

An **arm** against forgetting is one more trainee. What it reads besides comes behind its own rows
in each batch. Where it is held to the base, the base reads the same tokens in the same micro-batch,
on rows of no adapter, and ``head`` compares both distributions chunk by chunk. Under DPO an
``Example`` has a second sequence, ``rejected``; ``micro_batches.pack`` draws one.

Random numbers (initial weights, dropout, data order) are seeded by names, never drawn from a shared
stream. So the other runs of a pass, the micro-batches and interruptions change nothing but
rounding. If a step leaves NaN or infinity, each trainee's gradients are computed again alone before
any run is given up, because fused kernels multiply masked values by zero. On a CPU each core has a
**lane** (``models.lanes``): a thread with a copy of the modules, which shares the weights, and with
gradients of its own. The examples alone decide which lane reads what, and in which order gradients
are added, so a training gives the same weights each time.

Full fine-tuning is a pass with one trainee whose weights are the model's. A variant
(``models.variants``, one table) that is LoRA with another scaling, optimizer or initialisation is a
trainee like any other; the others are trained alone, as PEFT puts their weights into the base.
``rehearsal`` runs the model on fake tensors to see what a micro-batch keeps in memory; ``memory``
adds weights and optimizer states. Where Liger is installed, adapters train on CUDA with its
kernels; ``liger`` takes them off afterwards, so that nothing is scored with them.
"""
