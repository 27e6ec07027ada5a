"""Publishing: what a model must state, its card, the doctor's examination, and the upload."""

from snnp.publish.dataset_repository import licence_id
from snnp.publish.model_repository import card_header, missing_statements, prepare_model, publish_model

__all__ = ["card_header", "licence_id", "missing_statements", "prepare_model", "publish_model"]
