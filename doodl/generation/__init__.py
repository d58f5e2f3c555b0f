"""Pictures from prompts, optimised by guides: DOODL for generation and personalisation."""

from doodl.generation.generator import ImageGenerator
from doodl.generation.loading import load_generator
from doodl.generation.problem import GenerateProblem
from doodl.generation.requests import GenerateRequest, GenerateResult

__all__ = [
    "GenerateProblem",
    "GenerateRequest",
    "GenerateResult",
    "ImageGenerator",
    "load_generator",
]
