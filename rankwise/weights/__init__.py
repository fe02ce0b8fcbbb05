"""What an update is as a matrix, and what it did to the base's.

    base matrix ─▶ decomposition ─U, S, Vh─▶ adapted_svd ─cosines─▶ matrix ─▶ spectra.json
    adapter A, B ─▶ lowrank ─SVD of delta──────▲                      │
                                               └────random updates────┘

A base matrix is decomposed once, in float32 with its leading vectors corrected in float64, and
``decomposition`` keeps it by a hash of its content. In the base's singular basis, base + update is
D + P Qᵀ, with D diagonal and P, Q of the update's rank. There, coordinates are cosines, and no
second matrix of full size is ever decomposed (``adapted_svd`` derives it). A null is drawn in the
same basis, since random directions look the same from every basis.

Whatever is scored goes through one ``session``: a model in memory, and the adapters on it. The
stages of a study, its forms, the check of another stack, audit, check, repair and the callback for
Trainers differ in what they put into it; those without a study take results from it that pair item
by item. ``repairs`` derives other updates from a trained one, a family in each row of a table;
``adapter_repair`` scores all of them and the base in one pass. ``forms`` is a table of what a
matrix is after it was stored and read; ``merging`` puts base + update in a form into the resident
base, measures what is left of the update, and puts the base's own weights back; ``deployment``
scores each form and the adapter as trained.
"""
