"""What the report knows of an experiment: its arms with their looks, its groups with their labels, its rows.

Nothing here is particular to one task. Arms and groups that turn up in rows without being declared are added
at the end, so that a report never loses data; a declared one without rows is simply not drawn yet.
"""

from dataclasses import dataclass, field

from ceiling.evals.summary import METRICS
from ceiling.report.svg import ARM_COLOURS, arm_colour, role
from ceiling.report.units import clean

# The row tables of a results dict and their columns: what a CSV says when there is no row yet.
TABLES = {
    "curves": "arm group k mean lo hi seeds",
    "differences": "arm group k mean lo hi",
    "verdicts": "arm group verdict reason delta_1 delta_1_lo delta_1_hi delta_k delta_k_lo delta_k_hi "
    "null_k_lo null_k_hi new_problems base_upper tuned_only base_only null_tuned_only seeds n k",
    "crossings": "arm group share k_lo k k_hi",
    "sets": "arm group seed both base_only tuned_only neither expansion shrinkage",
    "sampling_gap": "arm group k delta_se delta_se_lo delta_se_hi seeds",
    "diversity": " ".join(("arm", "group", *METRICS)),
    "likelihood": "arm seed group nll_under_base nll_under_self",
    "ledger": "arm seed phase model flops tokens sequences seconds student",
    "counters": "arm seed name value",
    "training": "arm seed flops metric value",
    "gates": "seed name value threshold passed",
    "rlp": "seed arm metric value lo hi",
}

MARKERS = "osDv^PX*"
DASHES = (None, (5, 1.5), (2, 1.2), (6, 1.5, 1.5, 1.5))


@dataclass(frozen=True)
class Look:
    """How one arm is drawn, in every figure alike."""

    name: str
    title: str
    index: int  # the number in the CSS class arm-<index> and the variable --arm-<index>
    colour: str  # a sentinel, see svg.py
    css: str
    dash: tuple | None
    width: float
    marker: str
    control: bool = False
    kind: str = "arm"  # or "base", "null", "source" (prior, teacher: they have a ledger, no verdict)
    run: int | None = None  # which of several runs it belongs to, on a page that compares them

    @property
    def gid(self) -> str:
        """The id of its marks in a figure; svg.py makes classes of it."""
        return f"arm-{self.index}" if self.run is None else f"arm-{self.index}-run-{self.run}"

    @property
    def label(self) -> str:
        """The title where it is short enough to stand beside a line, otherwise the name."""
        shown = self.title if len(self.title) <= 22 else self.name
        return shown if len(shown) <= 22 else shown[:21] + "…"


@dataclass(frozen=True)
class Group:
    name: str
    title: str
    description: str = ""
    prior: str = ""
    trap: bool = False
    aggregate: bool = False  # several groups pooled
    members: tuple = ()  # names of the pooled groups
    traps: tuple = ()  # titles of the designed traps among them

    @property
    def note(self) -> str:
        """What must be said wherever this group is named."""
        if self.trap:
            return "designed trap"
        return f"with designed trap {', '.join(self.traps)}" if self.traps else ""

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.note})" if self.note else self.title


@dataclass(frozen=True)
class View:
    """The cleaned results and the look-ups that every section shares."""

    results: dict
    looks: dict[str, Look]
    groups: dict[str, Group]
    aggregates: dict[str, Group]
    declared: dict[str, dict] = field(default_factory=dict)

    @property
    def meta(self) -> dict:
        return self.results["meta"]

    @property
    def base(self) -> str:
        return self.meta.get("base") or "base"

    @property
    def null(self) -> str | None:
        return self.meta.get("null")

    @property
    def every(self) -> dict[str, Group]:
        """Groups, then aggregates; an aggregate that repeats a group's name is that group."""
        return {**self.groups, **self.aggregates}

    @property
    def complete(self) -> bool:
        return bool(self.meta.get("complete"))

    def done(self, arm: str) -> bool:
        """Whether nothing of an arm is still to come: on a page of several runs each arm says so of its own."""
        return self.complete or bool(self.declared.get(arm, {}).get("complete"))

    @property
    def progress(self) -> str:
        stages = self.meta.get("stages") or {}
        if not stages.get("total"):
            return "no stage has reported"
        return f"{stages.get('done') or 0} of {stages['total']} stages"

    def rows(self, table: str) -> list[dict]:
        return self.results.get(table) or []

    def title(self, arm: str) -> str:
        return self.looks[arm].title if arm in self.looks else str(arm)

    def group_title(self, name: str) -> str:
        group = self.every.get(name)
        return group.heading if group else str(name)


def build(results: dict) -> View:
    """The view of a results dict; any missing part is an empty one."""
    results = clean(results)
    results["meta"] = meta = results.get("meta") or {}
    declared = {arm["name"]: arm for arm in meta.get("arms") or []}
    return View(results, _looks(results, meta, declared), *_groups(results, meta), declared)


def _seen(results: dict, key: str) -> list[str]:
    """Values of `key` over all row tables, in order of appearance."""
    names = {}
    for table in TABLES:
        for row in results.get(table) or []:
            if row.get(key) is not None:
                names[row[key]] = None
    return list(names)


def _looks(results: dict, meta: dict, declared: dict) -> dict[str, Look]:
    base, null = meta.get("base") or "base", meta.get("null")
    names = list(dict.fromkeys([*declared, *sorted(_seen(results, "arm"), key=str)]))
    special = [name for name in (base, null) if name in names]
    trained = [name for name in names if name not in special]
    # Colours go to the arms first and to the controls after them, so that a control never takes the
    # colour of a main arm; the order is the configuration's, so a colour does not move as rows arrive.
    coloured = sorted(
        trained, key=lambda name: [bool(declared.get(name, {}).get(key)) for key in ("source", "control")]
    )
    looks = {}
    for name in special:
        arm = declared.get(name, {})
        first = name == base
        title = arm.get("title") or ("base" if first else "null (base drawn again)")
        looks[name] = Look(
            name,
            str(title),
            900 + (not first),
            role("ink" if first else "muted"),
            "currentColor" if first else "var(--muted)",
            (4, 2) if first else (1, 1.5),
            1.8 if first else 1.2,
            "o",
            False,
            "base" if first else "null",
        )
    for name in trained:
        arm, index = declared.get(name, {}), coloured.index(name)
        control = bool(arm.get("control"))
        dash = DASHES[(index // len(ARM_COLOURS) + control) % len(DASHES)]
        looks[name] = Look(
            name,
            str(arm.get("title") or name),
            index,
            arm_colour(index),
            f"var(--arm-{index})",
            dash,
            1.1 if control else 2.0,
            MARKERS[index % len(MARKERS)],
            control,
            "source" if arm.get("source") else "arm",
        )
    # The null arm closes every list: it is what the others are held against.
    return {
        **{n: look for n, look in looks.items() if n != null},
        **{n: looks[n] for n in [null] if n in looks},
    }


def _groups(results: dict, meta: dict):
    task = meta.get("task") or {}
    groups = {}
    for item in task.get("groups") or []:
        groups[item["name"]] = Group(
            item["name"],
            str(item.get("title") or item["name"]),
            str(item.get("description") or ""),
            "" if item.get("prior") is None else str(item["prior"]),
            bool(item.get("trap")),
        )
    aggregates = {}
    for name, members in (meta.get("aggregates") or {}).items():
        if name in groups:
            continue
        traps = tuple(groups[m].title for m in members if m in groups and groups[m].trap)
        aggregates[name] = Group(
            name, name.replace("_", " "), aggregate=True, members=tuple(members), traps=traps
        )
    for name in _seen(results, "group"):
        if name not in groups and name not in aggregates:
            groups[name] = Group(name, str(name))
    return groups, aggregates
