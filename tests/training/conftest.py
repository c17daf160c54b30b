"""Real trainings, calibrations and evaluations, seconds each: the fixtures of the models' tests."""

from tests.models.conftest import data, one_thread, one_thread_again, patients
from tests.unit.commands.conftest import first_command, midslice

__all__ = ["data", "first_command", "midslice", "one_thread", "one_thread_again", "patients"]
