"""Faster, more exact forward passes for layers of Transformers and PEFT, put in place while a model is scored."""

from agiledpo.layers.elementwise import PLAIN, Elementwise, compiled
from agiledpo.layers.replace import FastLayers

__all__ = ["PLAIN", "Elementwise", "FastLayers", "compiled"]
