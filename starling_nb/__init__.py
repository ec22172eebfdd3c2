"""The Starling workbook: a course that rebuilds the Starling-7B RLAIF pipeline."""

__version__ = "0.1.0"
