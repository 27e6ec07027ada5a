"""Publishing: what a model must state, its card, the doctor's examination, and the upload."""

from snnp.publish.header import card_header
from snnp.publish.models import prepare_model, publish_model
from snnp.publish.requirements import licence_id, missing_statements

__all__ = ["card_header", "licence_id", "missing_statements", "prepare_model", "publish_model"]
