"""What the libraries that models come from may say."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and remarks, for this process.

    Best before they are imported; of those that are, the bars are turned off all the same.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|datasets)"
    )
    # of tqdm in a notebook without widgets, which our progress does not need
    warnings.filterwarnings("ignore", message="IProgress not found")
    for name in ("transformers.utils.logging", "datasets.utils"):
        if name in sys.modules:  # it asked for the variables when it was imported
            sys.modules[name].disable_progress_bar()
