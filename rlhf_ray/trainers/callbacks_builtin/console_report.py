"""The line of each iteration on the console, and from time to time the rewards in detail."""

from rlhf_ray.trainers.callbacks import Callback, RunningTrainer

#: Iterations between two tables of all reward components.
DETAILS_EVERY = 10


class ConsoleReport(Callback):
    """Shows every iteration with its reward breakdown."""

    def on_train_start(self, trainer: RunningTrainer) -> None:
        self.trainer = trainer

    def on_iteration_end(self, iteration: int, metrics: dict[str, float]) -> None:
        console, total = self.trainer.console, self.trainer.total_iterations
        console.iteration(iteration, total, metrics)
        if iteration % DETAILS_EVERY == 0 or iteration == total:
            console.rewards(iteration, metrics)
