"""The run folder: training into it, going on from it, predicting from it, and its report."""

from wholebatch.runs.folder import Run
from wholebatch.runs.model import Model
from wholebatch.runs.recording import Recording
from wholebatch.runs.report import render, write_report
from wholebatch.runs.session import Session, begin, resume
from wholebatch.runs.settings import Settings

__all__ = ["Model", "Recording", "Run", "Session", "Settings", "begin", "render", "resume", "write_report"]
