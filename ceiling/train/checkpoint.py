"""Parameters and training states on disk, through Orbax, each with a SHA-256 manifest.

    params/                     a finished stage's weights: Orbax's files and manifest.json
    checkpoints/00000120/       an unfinished stage after 120 steps
        state/                  the train state (parameters, optimiser, EMA, counters): Orbax's files
        host.json               the loop's own state: ledger, curve, position
        manifest.json           written last: without it the step does not count

There is no random state to save: every draw is a function of (seed, step). Arrays may be sharded over any mesh and
come back on another. Files of our own are written by process 0 alone.
"""

import json
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from ceiling import hosts
from ceiling.model.config import ModelConfig, table, unflatten
from ceiling.model.sharding import param_shardings
from ceiling.train import manifest


def save_params(path: str | pathlib.Path, params) -> None:
    """Write a parameter tree to the new directory `path`."""
    path = pathlib.Path(path).absolute()
    try:
        with _orbax() as checkpointer:
            checkpointer.save(path, params)
        if jax.process_index() == 0:
            manifest.write(path, {"tree": described(params)})
    except Exception as error:
        raise OSError(f"{path}: the weights could not be written ({_reason(error)})") from error


def load_params(path: str | pathlib.Path, config: ModelConfig, mesh):
    """Parameters of `config` laid out over the mesh. A damaged directory is refused, and so is a tree that differs in
    names, shapes or dtypes, with both values (Orbax alone would take a flipped bit and cast dtypes silently)."""
    path = pathlib.Path(path).absolute()
    if not path.exists():
        raise ValueError(f"{path}: no checkpoint there; delete the stage's folder to have it made again")
    try:
        stored = manifest.read(path)["tree"]
    except manifest.Damaged as error:
        raise ValueError(f"{path}: {error}; delete the stage's folder to have it made again") from None
    target = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding),
        unflatten(table(config)), param_shardings(config, mesh),
    )  # fmt: skip
    _same_tree(path, stored, described(target))
    with _orbax() as checkpointer:
        return checkpointer.restore(path, target)


class Checkpoints:
    """The training checkpoints of one stage, in a directory of its own.

    identity: hash of everything that decides the stage's numbers; a checkpoint of another one is refused. A step is
    due every_s seconds after the last, or every so many steps if every_steps is not 0. The newest `keep` are kept.
    log gets one line for each step that is not used, with the reason.

    Example:
        with Checkpoints(directory, identity) as checkpoints:
            found = checkpoints.restore(state)     # (state, host) or None
            checkpoints.save(step, state, host)    # returns once the arrays are copied; files follow
    """

    def __init__(self, directory: str | pathlib.Path, identity: str, *, every_s: float = 60.0, every_steps: int = 0,
                 keep: int = 2, log: Callable[[str], None] = print):  # fmt: skip
        self.directory, self.identity, self.log = pathlib.Path(directory).absolute(), identity, log
        self.every_s, self.every_steps, self.keep = every_s, every_steps, keep
        self.saved_at = time.monotonic()
        self._orbax, self._writer, self._failure = _orbax(), None, None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except OSError:
            if kind is None:  # otherwise what stopped the work is the news
                raise
        finally:
            self._orbax.close()

    def due(self, step: int) -> bool:
        if self.every_steps:
            return step % self.every_steps == 0
        return hosts.led(lambda: time.monotonic() - self.saved_at >= self.every_s)

    def save(self, step: int, state, host: dict) -> pathlib.Path:
        """Write a checkpoint of `step` in the background. host: plain JSON. Raises OSError, in one line, if this or
        the save before it cannot be written; the older checkpoints stay."""
        self.wait()
        home = self.directory / f"{step:08d}"
        about = {"identity": self.identity, "step": step, "tree": described(state)}
        text = json.dumps(host)  # now: the loop goes on and changes what it holds
        try:
            if jax.process_index() == 0:
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir(parents=True)
            self._orbax.save(home / "state", state)
        except Exception as error:
            raise self._unwritten(home, error) from error
        self.saved_at = time.monotonic()
        self._writer = threading.Thread(target=self._finish, args=(home, about, text))
        self._writer.start()
        return home

    def wait(self) -> None:
        """Until the save in flight is complete on disk. Raises what it failed with, once."""
        if self._writer is not None:
            self._writer.join()
        self._writer, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def restore(self, like):
        """(state, host) of the newest good step, in the layout of `like` (arrays or ShapeDtypeStructs with shardings),
        or None. `like` is freed once a step is chosen: two states need not fit. Steps that are damaged or
        unfinished are removed, with a line each; one of another identity, shape or dtype is a ValueError."""
        self.wait()  # a save in flight is not a damaged one
        about = hosts.led(self._newest)
        if about is None:
            return None
        home = self.directory / f"{about['step']:08d}"
        self._refuse_another(home, about, like)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        for leaf in jax.tree.leaves(like):
            if isinstance(leaf, jax.Array):
                leaf.delete()
        state = self._orbax.restore(home / "state", target)
        self.log(f"continues from step {about['step']}")
        return state, json.loads((home / "host.json").read_text())

    def _newest(self) -> dict | None:
        """What the manifest of the newest good step says; newer ones, which are not, are removed."""
        for home in self._steps():
            try:
                about = manifest.read(home)
                if about.get("step") != int(home.name):
                    raise manifest.Damaged(f"it holds step {about.get('step')}")
                return about
            except manifest.Damaged as error:
                self.log(f"checkpoint {home} is not used: {error}")
                shutil.rmtree(home, ignore_errors=True)
        return None

    def _steps(self) -> list[pathlib.Path]:
        """Step directories, newest first; anything else that lies there is left alone and named."""
        if not self.directory.exists():
            return []
        steps = []
        for path in sorted(self.directory.iterdir(), reverse=True):
            if re.fullmatch(r"\d{8,}", path.name):
                steps.append(path)
            else:
                self.log(f"checkpoint {path} is not used: no name of ours")
        return sorted(steps, key=lambda path: int(path.name), reverse=True)

    def _refuse_another(self, home: pathlib.Path, about: dict, like) -> None:
        if about["identity"] != self.identity:
            raise ValueError(
                f"{home}: its settings have the hash {about['identity']}, this stage's {self.identity}; a checkpoint "
                f"belongs to one configuration. Delete {self.directory} to start this stage over"
            )
        _same_tree(home, about["tree"], described(like))

    def _finish(self, home: pathlib.Path, about: dict, text: str) -> None:
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                (home / "host.json").write_text(text)
                manifest.write(home, about)
                self._prune()
        except Exception as error:  # noqa: BLE001 - raised in the thread that trains
            self._failure = self._unwritten(home, error)

    def _prune(self) -> None:
        """Only finished steps count as kept, and an unfinished one is never older than a save of ours."""
        finished = sorted(int(p.parent.name) for p in self.directory.glob(f"*/{manifest.NAME}"))
        for step in finished[: -self.keep]:
            (self.directory / f"{step:08d}" / manifest.NAME).unlink()  # first: a half-deleted step must not count
            shutil.rmtree(self.directory / f"{step:08d}")

    def _unwritten(self, home: pathlib.Path, error: Exception) -> OSError:
        """The failure in one line; what was written of the step is removed, which also frees a full disk a little."""
        shutil.rmtree(home, ignore_errors=True)
        older = [p.parent.name for p in sorted(self.directory.glob(f"*/{manifest.NAME}"))]
        rest = f"the same command continues from step {int(older[-1])}" if older else "there is no older one"
        return OSError(f"{home}: the checkpoint could not be written ({_reason(error)}); {rest}")


def _orbax() -> ocp.StandardCheckpointer:
    """Directories are made before `save` returns: where they cannot be, Orbax's own threads would wait for them for
    many minutes after the error."""
    return ocp.StandardCheckpointer(async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False))


def described(tree) -> dict[str, list]:
    """{name: [shape, dtype]} of every leaf, e.g. "opt_state/1/mu/embed"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {name(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _same_tree(path: pathlib.Path, stored: dict, wanted: dict) -> None:
    if odd := sorted(stored.keys() ^ wanted.keys()):
        raise ValueError(f"{path}: the checkpoint and the config differ in which weights exist: {', '.join(odd)}")
    for name, want in wanted.items():
        if stored[name] != want:
            have, want = ((tuple(shape), dtype) for shape, dtype in (stored[name], want))
            raise ValueError(f"{path}: {name} is {have} on disk, the config wants {want}")


def _reason(error: Exception) -> str:
    """What went wrong, in a few words: the system's own where the text around it holds them."""
    text = " ".join(str(error).split())
    known = re.search(r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied", text)
    return known.group() if known else f"{type(error).__name__}: {text[:300]}"
