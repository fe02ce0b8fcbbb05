"""Tasks: lm-evaluation-harness tasks found by name, and what is trained and scored in them."""

from rankwise.tasks.requests import PreparedTask, Request, prepare_task
from rankwise.tasks.resolution import LoadedTask, list_tasks, load_tasks
from rankwise.tasks.training_rows import TrainingRow, task_rows
from rankwise.tasks.user_data import load_user_data

__all__ = [
    "LoadedTask",
    "PreparedTask",
    "Request",
    "TrainingRow",
    "list_tasks",
    "load_tasks",
    "load_user_data",
    "prepare_task",
    "task_rows",
]
