"""What clients ask of the catalog, and which function answers."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from agents.catalog.asks.model import edit_model, show_model
from agents.catalog.asks.pending import adopt_files, file_state
from agents.catalog.asks.pictures import add_picture, list_pictures, order_pictures
from agents.catalog.asks.search import list_outputs, search_models
from agents.catalog.asks.tags import drop_tag, list_tags, put_tag, tag_models
from agents.catalog.database import Database
from agents.migrator.pictures import ModelPictures
from bus.subjects import (
    ASK_ADD_PICTURE,
    ASK_ADOPT,
    ASK_DROP_PICTURE,
    ASK_DROP_TAG,
    ASK_EDIT,
    ASK_FILE,
    ASK_ORDER_PICTURES,
    ASK_OUTPUTS,
    ASK_PICTURES,
    ASK_PUT_TAG,
    ASK_SEARCH,
    ASK_SHOW,
    ASK_TAG_MODELS,
    ASK_TAGS,
    Subject,
)
from schemas.catalog import Strategy


def answers(
    db: Database, images: ModelPictures, roots: Mapping[str, str], strategy: Strategy
) -> dict[Subject[Any], Callable[[Any], Awaitable[Any]]]:
    """Which function answers which question about this catalog. `roots` are the configured folders by name;
    `strategy` is for pending records whose model is described already."""
    return {
        ASK_SEARCH: partial(search_models, db),
        ASK_SHOW: partial(show_model, db),
        ASK_EDIT: partial(edit_model, db),
        ASK_TAGS: partial(list_tags, db),
        ASK_PUT_TAG: partial(put_tag, db),
        ASK_DROP_TAG: partial(drop_tag, db),
        ASK_TAG_MODELS: partial(tag_models, db),
        ASK_PICTURES: partial(list_pictures, db),
        ASK_ADD_PICTURE: partial(add_picture, db),
        ASK_ORDER_PICTURES: partial(order_pictures, db),
        ASK_DROP_PICTURE: images.drop,
        ASK_OUTPUTS: partial(list_outputs, db),
        ASK_ADOPT: partial(adopt_files, db, roots),
        ASK_FILE: partial(file_state, db, strategy),
    }
