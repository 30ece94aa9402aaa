"""Editing: what a user says of a model goes over what its files and imports say, field by field."""

import json
import uuid

import msgspec

from agents.catalog import descriptions
from agents.catalog.asks.model import whole_model
from agents.catalog.asks.replies import told_in
from agents.catalog.database import Database
from agents.catalog.errors import NoSuchModel
from agents.catalog.outbox import say
from schemas.catalog import EditModel, ModelReply
from schemas.models import ModelDescribed


@told_in(ModelReply)
async def edit_model(db: Database, ask: EditModel) -> ModelReply:
    """Change the user's layer of a model; the model as it is then. An edit that changes nothing is no fact. Problems:
    unknown-model."""
    async with db.atomic() as sql:
        name = await descriptions.model_name(sql, ask.sha256)
        if name is None:
            raise NoSuchModel(ask.sha256)
        rows = await sql.rows("description", sha256=ask.sha256, layer="user")
        details = json.loads(rows[0][0]) if rows else {}
        for field, value in json.loads(msgspec.json.encode(ask.edit)).items():
            if value is None:
                details.pop(field, None)
            else:
                details[field] = value
        if await descriptions.put_layer(sql, ask.sha256, "user", details):
            fact = ModelDescribed(sha256=ask.sha256, name=name, layer="user", at=db.now())
            await say(sql, fact, uuid.uuid4().hex)
    return ModelReply(model=await whole_model(db, ask.sha256))
