"""Where reasoning-gym runs: making items, in a process of its own, and scoring answers, in a pool's children.

The trainer never imports reasoning_gym (it is slow, and some of its scorers evaluate text). What is allowed here was
measured on 0.1.25; see EXCLUDED for what is not and why.

    echo '{"tasks": ["lcm"], "training": 64, "evaluation": 16, "seed": 0, "out": "gym.jsonl"}' |
        PYTHONHASHSEED=0 python -m ceiling.tasks.gym_worker

Item i of a reasoning-gym data set is drawn from Random(seed + i), so neighbouring seeds share all items but one. Here
training draws from seeds below 2**31 and evaluation from seeds above, at places keyed by (seed, task); equal question
texts are kept once, whatever their split (D1). An item whose own answer does not score 1.0 is dropped and counted (V7).
"""

import collections
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys

from ceiling.tasks.base import Outcome, Verdict

EXCLUDED = {
    "its scorer evaluates the answer as code": (
        "binary_matrix countdown intermediate_integration n_queens polynomial_multiplication puzzle24 "
        "simple_integration spiral_matrix string_insertion"
    ),
    "its scorer evaluates what the item stores as code": "bitwise_arithmetic number_sorting",
    "its items take 0.05 s to 0.5 s each to make": "futoshiki knight_swap sokoban zebra_puzzles",
    "it stores no answer of its own": "boxnet graph_color propositional_logic rubiks_cube rush_hour",
    "its items do not survive JSON": "arc_agi gsm_symbolic rearc",
    "its scorer raises on malformed answers": "calendar_arithmetic coin_flip game_of_life prime_factorization",
    "its scorer accepts nan, or anything": "complex_arithmetic game_of_life_halting",
    "it needs scipy without saying so": "codeio",
    "it is a mixture of the others": "composite",
}
ALLOWED = frozenset(
    "ab acre advanced_geometry aiw arc_1d base_conversion basic_arithmetic bf binary_alternation "
    "caesar_cipher chain_sum circuit_logic color_cube_rotation "
    "count_bits count_primes course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery "
    "family_relationships figlet_font fraction_simplification gcd group_anagrams "
    "isomorphic_strings jugs kakurasu knights_knaves largest_island lcm leg_counting letter_counting letter_jumble "
    "list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering "
    "number_format number_sequence palindrome_generation palindrome_partitioning path_star "
    "polynomial_equations pool_matrix power_function products quantum_lock ransom_note rectangle_count rotate_matrix "
    "rotten_oranges self_reference sentence_reordering shortest_path simple_equations simple_geometry spell_backward "
    "string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi "
    "tsumego word_ladder word_sequence_reversal word_sorting".split()
)
CONSTANTS = ("0", "1", "2", "-1", "A", "B", "True", "False", "yes", "no", "[]", "nan", "inf")  # guesses
MAX_GUESSED = 256  # items on which guesses are tried
SHIFTS = (1, 2, 3, 5, 8)  # "another item's answer": the item so many places on
HALF = 1 << 31  # training seeds below, evaluation seeds above; some generators want seeds below 2**32


def judge_item(item: dict) -> Verdict:
    """For a Pool. item: task, entry (question, answer, metadata), answer. Right only at the full score: many scorers
    pay a little for nothing."""
    score = float(_scorer(item["task"])(answer=item["answer"], entry=item["entry"]))
    outcome = Outcome.RIGHT if score == 1.0 else Outcome.WRONG
    credit = score if 0.0 <= score <= 1.0 else 0.0  # nan too
    return Verdict(outcome, " ".join(item["answer"].split())[:200], credit)


def warm_up() -> None:
    """Imports what the first verdict would import."""
    import reasoning_gym  # noqa: F401


def freeze(tasks: list[str], training: int, evaluation: int, seed: int, out: str) -> dict:
    """Makes the items and writes them to `out` (JSON lines) and what is known of them to `out`.json, atomically.
    Returns the latter. Raises ValueError in one line."""
    lines, known = [], {}
    for task in tasks:
        if task not in ALLOWED:
            raise ValueError(refusal(task))
        drawn, counts = _draw(task, {"evaluation": evaluation, "training": training}, seed)
        known[task] = {**counts, "guess": _guess_rates(task, drawn[:MAX_GUESSED])}
        lines += [json.dumps(item, sort_keys=True) + "\n" for item in drawn]
    content = "".join(lines).encode()
    about = {
        "reasoning_gym": importlib.metadata.version("reasoning_gym"), "python": sys.version.split()[0], "seed": seed,
        "training": training, "evaluation": evaluation, "sha256": hashlib.sha256(content).hexdigest(), "tasks": known,
    }  # fmt: skip
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The items come last: where they are, all is.
    _replace(path.with_name(path.name + ".json"), json.dumps(about, indent=1, sort_keys=True).encode() + b"\n")
    _replace(path, content)
    return about


def refusal(task: str) -> str:
    """Why a task is not allowed, in one line."""
    why = next((why for why, names in EXCLUDED.items() if task in names.split()), "it is no task that was examined")
    return f"config.task.tasks: {task!r} is not allowed: {why}; allowed: {' '.join(sorted(ALLOWED))}"


def first_seed(seed: int, task: str, split: str) -> int:
    """Seed of a split's item 0; the ranges of the two splits cannot meet."""
    place = int.from_bytes(hashlib.sha256(f"{seed}/{task}/{split}".encode()).digest()[:8], "big")
    return place % (HALF // 2) + (HALF if split == "evaluation" else 0)


@functools.cache
def _scorer(task: str):
    if task not in ALLOWED:
        raise ValueError(refusal(task))
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def _draw(task: str, sizes: dict[str, int], seed: int) -> tuple[list[dict], dict]:
    """Items of a task, evaluation first, and how many were dropped as repeated or not right by their own answer."""
    import reasoning_gym

    out, seen, dropped = [], set(), collections.Counter(repeated=0, own_answer_wrong=0)
    for split, wanted in sizes.items():
        tries = 8 * wanted + 32
        data = reasoning_gym.create_dataset(task, size=tries, seed=first_seed(seed, task, split))
        found = []
        for index in range(tries):
            if len(found) == wanted:
                break
            entry = json.loads(json.dumps(data[index]))  # what scoring will get
            if entry["question"] in seen:
                dropped["repeated"] += 1
            elif not _right(task, entry, entry["answer"]):
                dropped["own_answer_wrong"] += 1
            else:
                seen.add(entry["question"])
                found.append({"task": task, "split": split, "index": index, **entry})
        if len(found) < wanted:
            raise ValueError(
                f"config.task: {task} has {len(found)} different {split} items in {tries} draws, {wanted} are wanted; "
                f"lower config.task.{split}_per_task or leave {task} out"
            )
        out += found
    return out, dict(dropped)


def _right(task: str, entry: dict, answer) -> bool:
    """Whether an answer is right after the way that a response's answer takes."""
    if not isinstance(answer, str) or not answer.strip() or "####" in answer:
        return False
    try:
        return judge_item({"task": task, "entry": entry, "answer": answer.strip()}).right
    except Exception:  # noqa: BLE001 - a scorer that raises has not accepted
        return False


def _guess_rates(task: str, items: list[dict]) -> dict:
    """How often answers that know nothing are right: constants, the commonest answer, another item's answer."""
    common = collections.Counter(str(item["answer"]) for item in items).most_common(1)[0][0]
    rates = {c: sum(_right(task, x, c) for x in items) / len(items) for c in dict.fromkeys((*CONSTANTS, common))}
    others = [
        _right(task, item, items[(i + shift) % len(items)]["answer"])
        for shift in SHIFTS if shift % len(items) for i, item in enumerate(items)
    ]  # fmt: skip
    other = sum(others) / len(others) if others else 0.0
    constant = {c: rate for c, rate in rates.items() if rate}
    return {"constant": constant, "another_items_answer": other, "rate": max(other, *rates.values())}


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    try:
        freeze(**json.load(sys.stdin))
    except ValueError as error:
        sys.exit(str(error))
