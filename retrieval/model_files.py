"""Where a named model lies: in a folder, on the hub, or in the hub's cache on this machine.

The loaders of transformers and tokenizers ask the hub again and again, for more than a minute, where there is no
network. So it is asked once, here, before anything is loaded.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

_ASK_SECONDS: Final = 5.0
_MARKS: Final = ("modules.json", "config.json", "tokenizer.json")
"""Files by which a folder is known to hold a model, or the part of it that is asked for."""


class Place(StrEnum):
    """Where a model lies; the value says it to people."""

    FOLDER = "in a folder"
    HUB = "on the hub"
    CACHE = "in the hub's cache on this machine; the hub does not answer"


class ModelMissing(LookupError):
    """There is no model of that name within reach."""


def locate(name: str) -> Place:
    """The place of a model: a folder by its path, or a model of the hub by its name. Takes five seconds at most.

    Raises:
        ModelMissing: the folder holds no model, the hub knows none, or neither the hub nor its cache can be read.
    """
    if Path(name).is_dir():
        if any((Path(name) / mark).is_file() for mark in _MARKS):
            return Place.FOLDER
        raise ModelMissing(f"the folder {name} holds no model: it has none of {', '.join(_MARKS)}")
    try:
        HfApi().model_info(name, timeout=_ASK_SECONDS)
    except HFValidationError as error:
        raise ModelMissing(f"there is no folder {name}, and it is no name of a model on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelMissing(f"there is no folder {name}, and no model of that name on the hub") from error
    except Exception as error:  # what the client raises without a network, or offline by its own settings, varies
        if not any(isinstance(try_to_load_from_cache(name, mark), str) for mark in _MARKS):
            raise ModelMissing(
                f"there is no folder {name}, it is not in the hub's cache on this machine, and the hub does not answer"
            ) from error
        return Place.CACHE
    return Place.HUB


def tokenizer_file(name: str) -> Path:
    """The ``tokenizer.json`` of a model, downloaded if need be.

    Raises:
        ModelMissing: as :func:`locate`.
        OSError: the model has none.
    """
    place = locate(name)
    if place is Place.FOLDER:
        return Path(name) / "tokenizer.json"
    return Path(hf_hub_download(name, "tokenizer.json", local_files_only=place is Place.CACHE))
