"""run_ablation: a grid of runs, kept one by one in a store; and the Study that tells what they found.

On this machine, in one process or several:

    study = run_ablation({"method": ["ViP", "LinearProbe"], "num_shots": [1, 4, 16], "seed": [1, 2, 3]},
                         store="studies/first", data="phantom-derm", jobs=2)
    study.summary()

Any number of processes may make the same call at the same time: each takes runs that nobody has, and all end
with the same study. So a SLURM cluster needs no more than an array of them. With that call in study.py:

    sbatch --array=0-7 --cpus-per-task=4 --time=4:00:00 --wrap "python study.py"

Jobs that run out of time lose the run they were at; submitted again, they go on. The store and the images
must be in folders that all nodes see. Where a scheduler should hand out the runs, joblib's backends do it:

    from dask.distributed import Client
    from dask_jobqueue import SLURMCluster            # or LocalCluster, from dask.distributed

    cluster = SLURMCluster(cores=4, processes=1, memory="16GB", walltime="04:00:00")
    cluster.scale(jobs=8)
    with Client(cluster), joblib.parallel_config("dask"):
        study = run_ablation(grid, store="/shared/studies/first", data="pneumonia", root="/shared/data")
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.backbone.clip import Clip
from medvlp.data.datasets import Data
from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.files import cache_folder
from medvlp.data.html import Table, escaped, literal_block
from medvlp.methods.base import Method
from medvlp.study.ablation.grid import setting_of
from medvlp.study.ablation.make import make
from medvlp.study.ablation.plan import keys_to_choose, plan
from medvlp.study.ablation.run import Workshop, check_methods, tested_images
from medvlp.study.ablation.statistics import Predictions, compare, summary
from medvlp.study.ablation.store import DONE, FAILED, RunStore, unpack
from medvlp.study.metrics import METRICS
from medvlp.study.training.config import SELECTION

ALWAYS = ("method", "data", "seed")  # columns of every table of runs


def run_ablation(
    grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    store: str | Path,
    data: str | Path | Data | None = None,
    root: str | Path | None = None,
    clip: str | Clip = "tiny",
    config: Mapping[str, Any] | None = None,
    methods: Mapping[str, type[Method]] | None = None,
    tune: str | Sequence[str] | None = None,
    jobs: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> "Study":
    """Make every run of a grid that the store does not have yet, and return the study of all of them.

    A grid is the product of its lists: {"method": ["CoOp", "ViP"], "seed": [1, 2, 3]} is six runs. A value
    that is no list, tuple or range counts as one (so one list as a value is a list in a list). Several grids
    are their union. The keys are:

        method       a name of the package's methods, or of `methods`
        data         a card's name or path, or a Data; default: the argument `data`
        test         another data set with the same classes, whose test images are used
        num_shots    training images a class, "all" (default), or "rarest": as many as the rarest class has;
                     validation is cut as `load_dataset` does it
        scenario     "few-shot" (default), or without validation images "standard", "relaxed", "realistic",
                     the last two with each class's share of the shots; see `plan.Protocol`
        seed         of shots, of the learned tensors' start and of training; the test images stay the same.
                     Methods with the same seed see the same shots. Default 1
        clip         a name for `load_clip`, or a Clip; default: the argument `clip`
        average      whether weights are averaged over epochs; default: where the method was published so
        base_to_new  True: train on the first half of the classes; the metrics are of their test images, and
                     "base accuracy", "new accuracy" and their "harmonic mean" are added
        ...          any field of TrainConfig, any argument of the method's constructor; where both have it,
                     "config.class_weight" or "method.class_weight"

    The recipe of a run is the method's own, over it `config`, over that the grid. Values may be numbers,
    names, mappings, SymptomSets, Representations, Data; `Named("mine", value)` gives one a name for tables.

    A run's id is a hash of everything that its results depend on, so it is made once, whatever grids ask for
    it. What was made stays after Ctrl-C, a failure or the end of the process, and the next call goes on from
    there; a run that failed before is tried again. Test images have no part in any choice.

    Args:
        grid: One grid, or a list of several.
        store: The folder of results; see `run_store`.
        data: The data set, where the grid does not give it.
        root: The folder of its images, as for `load_dataset`.
        clip: The CLIP, where the grid does not give it.
        config: Fields of TrainConfig for all runs.
        methods: {name: class}, your own methods. Their code is part of their runs' ids.
        tune: Keys of the grid whose values are chosen on the validation images, by their loss, with the first
            seed of the grid and apart for every combination of the other keys; the other seeds run with what
            was chosen. The study has the chosen runs. {"lr": [0.002, 0.02, 0.2]} with `tune="lr"` gives every
            method the same care. One value needs no choice.
        jobs: Processes. None: what `joblib.parallel_config` says, else this process alone. They load a CLIP
            or data set that is given by name, once each; one that is given itself goes to them with each run.
        cache_dir: Of the image features; by default the features' own.
        progress: Show a bar with the runs done and failed, and the time left.

    Raises:
        ValueError: a key that nothing takes, or that a method of the grid does not have; one of the package's
            methods that cannot be built, such as CILMP for a card without representations. That is found
            before any run. What goes wrong inside a run is in `Study.failures()` and stops no other.
        OSError: a store that cannot be written; nothing was run.

    Example:
        >>> import medvlp, tempfile
        >>> grid = {"method": ["ZeroShot", "LinearProbe"], "num_shots": 2, "seed": [1, 2]}
        >>> study = medvlp.run_ablation(grid, store=tempfile.mkdtemp(), data="phantom-derm", progress=False)
        >>> study.runs[["method", "seed", "status"]]
                method  seed status
        0     ZeroShot     1   done
        1     ZeroShot     2   done
        2  LinearProbe     1   done
        3  LinearProbe     2   done
    """
    check_kinds(run_ablation, locals() | {"config": None})  # a TrainConfig has an error of its own
    runs = plan(grid, data, root, clip, config, methods)
    over = keys_to_choose(runs, tune)
    place = RunStore(store)
    place.check_writable()
    check_methods(runs, place, progress)
    given = list(dict.fromkeys(key for run in runs for key in run.given))
    features = Path(cache_dir or cache_folder()).expanduser().resolve()
    runs = make(runs, over, Workshop(place, features, progress), jobs)
    for run in {(run.test.fingerprint, run.protocol.base_to_new): run for run in runs}.values():
        place.write_test(tested_images(run)[0])  # if it was lost
    return Study(store, {run.id: run.settings for run in runs}, given)


class Study:
    """The runs of a store: what they were, what they found, and what that says.

    Args:
        store: The folder that `run_ablation` filled, or that several stores' files were copied to.
        settings: {run id: its settings}, the runs to look at and the values that tables show. None: all that
            are there.
        given: The settings that the grid gave. None: those that any grid gave.

    Raises:
        FileNotFoundError: the store has no runs, or lacks one that is asked for.
        ValueError: a damaged file.

    Example:
        >>> from medvlp.study.ablation.papers import shipped_study
        >>> study = shipped_study("vip_parts")  # a Study of a folder of the package
        >>> len(study), study.varied
        (12, ['method', 'data', 'aggregation', 'context', 'seed'])
        >>> study.runs.groupby(["context", "aggregation"]).size().tolist()
        [3, 3, 3, 3]
    """

    def __init__(
        self,
        store: str | Path,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        given: Sequence[str] | None = None,
    ) -> None:
        self.store = RunStore(store)
        ids = self.store.ids() if settings is None else list(settings)
        if not ids:
            raise FileNotFoundError(f"there are no runs in {store}.")
        self._records: dict[str, dict[str, Any]] = {}  # without predictions, which are large
        for run_id in ids:
            record = self.store.read(run_id)
            if record is None:
                raise FileNotFoundError(f"{store} has no run {run_id!r}.")
            self._records[run_id] = {key: record[key] for key in record if key not in ("logits", "new")}
        records = self._records.values()
        self._settings = settings or {record["id"]: record["settings"] for record in records}
        if given is None:
            given = list(dict.fromkeys(key for record in records for key in record["given"]))
        self.varied = self._varied(given)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run: run (its id), method, data, seed and what else varies, status, metrics, the same and
        the loss on the validation images as "val ...", n_trainable (how many numbers are learned), epoch
        (whose weights were kept) and seconds. What a run's method does not have is None, metrics of a failed
        run are NaN.
        """
        records = self._records
        names = dict.fromkeys(
            [*METRICS, *(name for one in records.values() for name in one.get("metrics", ()))]
        )
        rows = []
        for run_id, record in records.items():
            metrics, validation, kept = (
                record.get(key) or {} for key in ("metrics", "validation", "kept epoch")
            )
            row = {"run": run_id} | {key: setting_of(self._settings[run_id], key) for key in self.varied}
            row["status"] = record["status"]
            row |= {name: metrics.get(name) for name in names}
            row |= {f"val {name}": validation.get(name) for name in SELECTION}
            row |= {"n_trainable": record.get("n_trainable"), "epoch": kept.get("epoch")}
            rows.append(row | {"seconds": record["seconds"]})
        numbers = [*names, *(f"val {name}" for name in SELECTION), "seconds"]
        types = dict.fromkeys(numbers, "float") | {"n_trainable": "Int64", "epoch": "Int64"}
        # beside None whole numbers would become fractions
        types |= {key: "object" for key in self.varied if any(row[key] is None for row in rows)}
        columns = {key: pd.Series([row[key] for row in rows], dtype=types.get(key)) for key in rows[0]}
        return Table(columns)

    def failures(self) -> pd.DataFrame:
        """The runs that failed: run, what varies, error (its last line) and traceback."""
        failed = self.runs[self.runs["status"] == FAILED][["run", *self.varied]]
        words = [self._records[run_id]["traceback"] for run_id in failed["run"]]
        last = [text.strip().splitlines()[-1] for text in words]
        return failed.assign(error=last, traceback=words).reset_index(drop=True)

    def predictions(self, run_id: str) -> Predictions:
        """What a run said of its test images, those of the base classes where it has base and new ones.

        Raises:
            ValueError: no such run in this study, one that failed, or one that ships without predictions.
        """
        check_choice("run", run_id, self._records, str(self.store.folder))
        if self._records[run_id]["status"] != DONE:
            raise ValueError(f"run {run_id!r} failed; study.failures() says why.")
        record = self.store.read(run_id)
        if "logits" not in record:
            raise ValueError(f"run {run_id!r} was kept without its predictions.")
        return Predictions(*self.store.read_test(record["test"]), unpack(record["logits"]))

    def with_intervals(self, metric: str = "balanced accuracy") -> pd.DataFrame:
        """`runs`, and the 95 % interval of a metric over test images, as "METRIC low" and "METRIC high"."""
        ends = [f"{metric} low", f"{metric} high"]
        if set(ends) <= set(self.runs):  # a study that ships without predictions has them instead
            return self.runs
        table = self.summary(metric, by=["run"])  # one group a run, in the order of the runs
        return self.runs.assign(**dict(zip(ends, (table["images low"], table["images high"]), strict=True)))

    def export(self, folder: str | Path, predictions: bool = True) -> None:
        """Copy the runs to another store.

        Args:
            folder: The other store.
            predictions: Copy these, too. They are large; without them the store holds accuracy and balanced
                accuracy with their intervals over test images in their place, and `predictions` has none.

        Raises:
            OSError: the other store cannot be written.
        """
        if predictions:
            self.store.copy_to(folder, self._records)
            return
        other, metrics = RunStore(folder), ("accuracy", "balanced accuracy")
        other.check_writable()
        tables = [self.with_intervals(metric).set_index("run") for metric in metrics]
        for run_id, record in self._records.items():
            kept = {
                name: table.loc[run_id, name].round(4)
                for metric, table in zip(metrics, tables, strict=True)
                for name in (metric, f"{metric} low", f"{metric} high")
            }
            rest = {key: value for key, value in record.items() if key not in ("test", "sha256")}
            other.write(run_id, rest | {"metrics": kept})

    def summary(
        self, metric: str = "balanced accuracy", by: Sequence[str] | None = None, **options: Any
    ) -> pd.DataFrame:
        """Mean and 95 % intervals of a metric for each group of runs; see `statistics.summary`.

        Groups have the same values in the columns `by`; None: in all that vary but the seed.
        """
        return summary(self.runs, self.predictions, metric, self._by(by), **options)

    def compare(
        self,
        baseline: Any,
        by: Sequence[str] | None = None,
        metric: str = "balanced accuracy",
        **options: Any,
    ) -> pd.DataFrame:
        """Each group of runs against a baseline, on the same images and seeds; see `statistics.compare`."""
        return compare(self.runs, self.predictions, baseline, self._by(by), metric, **options)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        counts = self.runs["status"].value_counts().to_dict()
        states = ", ".join(f"{n} {status}" for status, n in counts.items())
        varied = ", ".join(key for key in self.varied if self.runs[key].nunique(dropna=False) > 1)
        return f"Study({self.store.folder.name}: {len(self)} runs, {states}; varied: {varied or 'nothing'})"

    def _repr_html_(self) -> str:
        table = self.runs.to_html(float_format="{:.3f}".format, max_rows=20)
        return literal_block(f"<p>{escaped(repr(self))}</p>{table}")

    def _by(self, by: Sequence[str] | None) -> list[str]:
        """The columns that make groups."""
        if by is not None:
            return by if isinstance(by, str) else list(by)  # a string is refused with a hint
        varied = [key for key in self.varied if key != "seed" and self.runs[key].nunique(dropna=False) > 1]
        return varied or ["method"]

    def _varied(self, given: Sequence[str]) -> list[str]:
        """The settings that tables show: some always, and those given that are not the same everywhere."""
        values = {key: {setting_of(settings, key) for settings in self._settings.values()} for key in given}
        several = [key for key in given if key not in ALWAYS and len(values[key]) > 1]
        return ["method", "data", *several, "seed"]
