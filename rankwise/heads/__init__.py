"""Attention heads: what training changed in them, and what they are good for.

``layouts`` has one entry for each layout of attention projections; a model that fits none is
refused by name. A head's part of an update is a list of slices (``interventions.head_slices``):
removal and norms go over it. ``scorer`` reads the prefix tree once and keeps what enters each
layer; an ablation in layer l begins at l, with one row per head. ``screen`` predicts effects by the
gradient, and ``changes`` measures what training changed.
"""
