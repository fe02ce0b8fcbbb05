"""Base models, their adapters and their attention.

``base_folder`` finds a base, ``loading`` loads it, ``structure`` describes it, and ``files`` says
before that whether its files hold the model of its config. An adapter on disk is an
``AdapterFolder``, made where its path enters and handed on, so that each part is read once;
``frozen_adapters`` scores with it, ``trained_adapters`` trains one. ``variants`` is the table of
PEFT methods.

``start`` merges the adapter of ``methods.lora.start`` into a folder of the cache when a base's
weights are fetched. ``BaseModel.fingerprint`` covers it, so everything else knows of one more base
and no start. The layers of a base that is larger than a card lie on several (``placed``), in the
one process that there is: what is outside of the layers is on the first card, with tokens,
positions and losses; what is inside asks for the layer's. A model that does not use transformers'
``AttentionInterface`` is refused: by its structure when a study is planned, and by a probe when it
is loaded.
"""
