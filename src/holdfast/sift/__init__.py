"""Sparse fine-tuning in place (SIFT, arXiv 2312.11875), a PEFT method; importing this room makes it known to PEFT."""

from holdfast.adapters.registration import register
from holdfast.sift.config import SiftConfig
from holdfast.sift.model import SiftModel

register("SIFT", SiftConfig, SiftModel, SiftModel.prefix)
