"""What happens at an interval of training: losses are logged, G is evaluated, a sheet is drawn, a checkpoint saved.

Each is one function of the run and of its state; all ranks call it, rank 0 writes.
"""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from tqdm import tqdm

import layers
import utils
from inception_utils import Measure, evaluate_generator, summary
from reports.curves import plot_curves
from reports.page import write_page
from sampling import batch_norm
from sampling.sheets import class_sheet
from torch_utils import checkpoints, distributed
from torch_utils.distributed import StopSignal, mean_over_ranks, on_ranks
from torch_utils.images import save_image
from training import rollback, run_folder
from training.logs import Speedometer, peak_memory_mb, read_log, warn
from training.options import ReportOptions
from training.report import make_report
from training.state import Run, TrainingState
from training.watchdog import Collapse, Finding


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    singular_values: bool
    test: bool
    sheet: bool
    save: bool
    ends: bool = False  # training

    @property
    def pause(self) -> bool:
        """Whether training waits for more than a line of the log."""
        return self.test or self.sheet or self.save


def due(reports: ReportOptions, step: int, last: bool, stopped: bool) -> Due:
    """last: whether the run is complete; stopped: whether a signal ends it here."""

    def at(interval):
        return bool(interval) and step % interval == 0

    return Due(
        log=at(reports.log_every) or last,
        singular_values=at(reports.sv_log_interval),
        test=bool(reports.test_every) and (at(reports.test_every) or last),
        sheet=at(reports.sample_every) or last,
        save=at(reports.save_every) or at(reports.test_every) or last or stopped,
        ends=last or stopped,
    )


def watch(run: Run, state: TrainingState, terms: dict[str, torch.Tensor]) -> None:
    """After each step: note what is not finite without waiting for a GPU, and log what float16's loss scale left out.

    Raises: as `watch_numbers`, where gradients overflow float16 too often to be the loss scale's doing.
    """
    updates = {"G": 1, "D": run.options.steps.num_D_steps}
    for name, scaler in state.scalers.items():
        if scaler.newly_skipped() and run.log:
            run.log.write("skipped_step", state.step, {"network": name, "loss_scale": scaler.get_scale()})
        if finding := state.watchdog.skipped(state.step, name, scaler, updates[name]):
            _act(run, state, [finding])
    networks = (state.G, state.scaler_G), (state.D, state.scaler_D)
    state.watchdog.mark(state.step, _sound(state, terms), networks)


def _sound(state, terms):
    """The losses, but those of a step that float16's loss scale left out, which may have overflowed."""
    skipped = [f"{name}_" for name, scaler in state.scalers.items() if scaler.in_a_row]
    return {name: value for name, value in terms.items() if not name.startswith(tuple(skipped))}


def watch_numbers(run: Run, state: TrainingState) -> None:
    """Look whether all numbers have been finite so far: before anything is told of them or kept.

    Raises: utils.UserError where they have not, or `Collapse` with --on_collapse rollback.
    """
    finding = state.watchdog.read(state.step, (state.G, state.D), run.ranks)
    _act(run, state, [finding] if finding else [])


def _watch_state(run, state):
    """The same of all that a checkpoint holds: moments of the optimizers can overflow by themselves."""

    def examine():
        name = checkpoints.not_finite(state.state_dict())
        text = f"{name} is no longer finite (NaN or infinite)"
        return [Finding("not_finite", text, state.step - 1, fatal=True)] if name else []

    _act(run, state, on_ranks(run.ranks, examine))


def _act(run, state, findings):
    """Log what is new and wrong, and do as --on_collapse says; all ranks, with the same findings."""
    options, memory = run.options.watch, state.watchdog.memory
    for finding in findings:
        undone = options.on_collapse == "rollback" and len(memory.rollbacks) < options.max_rollbacks
        ends = finding.fatal or options.on_collapse != "warn"
        action = "rollback" if undone else "stop" if ends else "warn"
        if run.log:
            key = {"command": run.options.training_key} if action == "stop" else {}
            told = {"kind": finding.kind, "text": finding.text, "action": action, "rollbacks": len(memory.rollbacks)}
            run.log.write("collapse", state.step, told | key)
            if action == "warn":
                tqdm.write(f"step {state.step}: {finding.text}; --on_collapse can act on it", file=sys.stderr)
        if action == "rollback":
            raise Collapse(finding)
        if action == "stop":
            draw_curves(run, state.step)
            raise utils.UserError(rollback.stopped_text(run.folder, state.step, finding.text, len(memory.rollbacks)))


def tell_compiled(speed: Speedometer, bar: tqdm) -> None:
    """After a run's first step, say what compiling cost; the speed is that of the steps after it."""
    bar.write(f"compiled both networks: the first step took {utils.duration(speed.elapsed)}")
    speed.restart(speed.start_step + 1)


def log_losses(run: Run, state: TrainingState, terms: dict[str, torch.Tensor], images_per_s: float, bar: tqdm) -> None:
    """The means of finite losses over all ranks, which the bar shows too; raises as `watch_numbers` where they tell."""
    means = mean_over_ranks(terms, run.ranks)
    means = {name: value for name, value in means.items() if name in _sound(state, terms) or math.isfinite(value)}
    if run.log:
        rates = {f"{name}_lr": state.parts[f"opt_{name}"].param_groups[0]["lr"] for name in "GD"}
        seen = {"images_seen": state.images_seen}
        resources = {"images_per_s": round(images_per_s, 1), "memory_mb": peak_memory_mb(run.ranks.device)}
        run.log.write("train", state.step, {**means, **rates, **seen, **resources})
        shown = {name: f"{value:.3f}" for name, value in means.items()}
        bar.set_postfix({**shown, "images/s": f"{images_per_s:.0f}"}, refresh=False)
    loss, options = run.options.steps.loss, run.options.watch
    sigmas = layers.singular_values(G=state.G, D=state.D)
    _act(
        run, state, on_ranks(run.ranks, lambda: state.watchdog.examine_losses(state.step, means, loss, sigmas, options))
    )


def log_singular_values(run: Run, state: TrainingState) -> None:
    if run.log:
        run.log.write("singular_values", state.step, layers.singular_values(G=state.G, D=state.D))


def pause(run: Run, state: TrainingState, due: Due, stop: StopSignal, bar: tqdm) -> bool:
    """All that training waits for. Returns: whether it ends here, as a signal has come and all is saved.

    Evaluations can take longer than the grace of a pre-emption: the checkpoint comes before, for a resumed run to
    evaluate, and again after, with the metrics. Raises: as `watch_numbers` and `save`.
    """
    distributed.broadcast_buffers([state.G, state.evaluated], run.ranks)  # what leaves a process is rank 0's
    metrics, state.evaluating, kept = None, False, False
    if due.save:
        _watch_state(run, state)
    if due.test:
        state.evaluating = True
        kept = _save(run, "ckpt", run.options.reports.num_save_copies, state.state_dict(), None) is None
        metrics, state.evaluating = evaluate(run, state, bar), False
    if due.sheet:
        draw_sheet(run, state)
    if not due.save:
        return False  # whatever came while a sheet was drawn: the checkpoint is the next step's
    save(run, state, metrics, last=due.ends or (not kept and stop.requested(run.ranks)))
    draw_curves(run, state.step)
    return stop.requested(run.ranks)


def evaluate(run: Run, state: TrainingState, bar: tqdm) -> dict:
    """The metrics of the evaluated generator, which is kept if it is the best so far; raises as `watch_numbers`."""
    options, which = run.options, run.options.reports.which_best
    number, seed = options.metrics.num_inception_images, options.run.seed
    how = {"ema": options.ema.ema, "mode": options.batch_norm}
    metrics = evaluate_generator(state.evaluated, run.measure, number, seed, **how)
    best = run_folder.better(which, state.step, metrics, state.best)
    is_best = best is not None and best["step"] == state.step
    if not is_best or not _save(run, "best", options.reports.num_best_copies, state.best_state_dict(), metrics):
        state.best = best  # but where its file could not be written: then the next better one is the best
    if run.log:
        run.log.write("eval", state.step, metrics)
        bar.write(f"step {state.step}: {summary(metrics)}")
    factor = options.watch.collapse_factor
    _act(run, state, on_ranks(run.ranks, lambda: state.watchdog.examine_metrics(state.step, metrics, factor)))
    return metrics


def draw_sheet(run: Run, state: TrainingState) -> None:
    if run.log:
        seed = run.options.run.seed
        with batch_norm.prepared(state.evaluated, run.options.batch_norm, seed) as prepared:
            sheet = class_sheet(prepared, 10, seed, class_names=run.about["class_names"])
        _failure(run, state.step, lambda: save_image(sheet, run.folder / "samples" / f"step_{state.step:08d}.png"))
        run.log.image("samples", state.step, sheet)


def save(run: Run, state: TrainingState, metrics: dict | None, last: bool = False) -> None:
    """metrics: of this step, None where it was not evaluated; last: whether the run ends here, with this alone.

    Raises: utils.UserError where it could not be written, and there will be no other, or --max_save_failures in a row
        could not.
    """
    problem = _save(run, "ckpt", run.options.reports.num_save_copies, state.state_dict(), metrics)
    state.save_failures = state.save_failures + 1 if problem else 0
    if problem and (last or state.save_failures >= run.options.reports.max_save_failures):
        times = f", {state.save_failures} in a row" if state.save_failures > 1 else ""
        raise utils.UserError(
            f"no checkpoint of step {state.step} could be saved{times}: {problem}. Make room or mend what is wrong; "
            f"the same command goes on from the newest one in {run.folder}"
        )


def save_averages(run: Run, state: TrainingState) -> None:
    """Store the power-law averages as they stand; raises as `watch_numbers`."""
    watch_numbers(run, state)

    def write():
        entries = {**run.about, **state.power_state_dict()}
        _failure(run, state.step, lambda: run_folder.save_averages(entries, run.folder))

    on_ranks(run.ranks, write)


def _save(run, kind, copies, content, metrics):
    """Write a checkpoint on rank 0: None, or why it could not be; all ranks end where it must not be written."""

    def write():
        entries = {**run.about, "metrics": metrics, **content}
        return _failure(run, content["step"], lambda: run_folder.save(entries, run.folder, kind, copies))

    return on_ranks(run.ranks, write)


def _failure(run: Run, step: int, write: Callable[[], None]) -> str | None:
    """Why `write` could not write, after a warning and an event of the log, or None: training goes on all the same."""
    try:
        write()
    except utils.CannotWrite as error:
        warn(f"step {step}: {error}; training goes on")
        run.log.write("save_failed", step, {"problem": str(error)})
        return str(error)
    return None


def draw_curves(run: Run, step: int) -> None:
    """The curves as a picture, and the run's page."""
    if run.log:
        events, real = read_log(run.log.path), scores_of_real(run.measure)
        _failure(run, step, lambda: plot_curves(events, run.folder / "curves.png", real))
        report = make_report(run.folder, events, run.options, run.about, real)
        _failure(run, step, lambda: write_page(report, run.folder / "report.html"))


def scores_of_real(measure: Measure | None) -> dict[str, float]:
    """What the real images themselves score, by the name of a metric: about the best that a generator can reach."""
    if measure is None:
        return {}
    reference = measure.reference
    scores = {"is_mean": reference.is_mean, "coverage": reference.coverage_ceiling}
    return {name: value for name, value in scores.items() if value is not None}
