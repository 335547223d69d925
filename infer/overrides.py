"""The command line before Hydra reads it: keys that do not exist are refused, texts are taken as they stand.

Knows the schema's keys and Hydra's override grammar, and imports neither Hydra nor anything heavy.

    question.prompt='Review: {text}\\nSentiment:'    as it stands, without a second pair of quotes; \\n is a new line
    'question.labels={spam:" spam",ham:" ham"}'     takes the place of the experiment's labels
"""

from __future__ import annotations

import difflib
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any

from infer.ranks import rank
from models.kind_settings import MODEL_KINDS, TASK_KINDS
from models.settings import Settings

MULTIRUN_FLAGS = {"-m", "--multirun"}
REPLACED_KEYS = ("question.labels", "question.descriptions", "compare.ways")  # as a whole, where Hydra would merge
KEY_VALUE = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)
KINDS: dict[str, dict[str, Any]] = {"task": TASK_KINDS, "model": MODEL_KINDS}
KIND_KEYS = {"task": "name", "model": "kind"}  # the key that says which kind a group is


def known_keys(kinds: dict[str, str] | None = None) -> dict[str, Any]:
    """{"trainer.epochs": float, ...}: every setting and its type; of the kinds named, {"task": "text"}, or of all."""
    keys: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Settings).items():
        of_group = KINDS.get(name, {"": hint})
        wanted = (kinds or {}).get(name)
        for schema in of_group.values() if wanted is None else [of_group[wanted]]:
            if hasattr(schema, "__dataclass_fields__"):
                keys |= {f"{name}.{key}": kind for key, kind in typing.get_type_hints(schema).items()}
            else:
                keys[name] = schema
    return keys


def unknown_key(key: str, kinds: dict[str, str] | None = None) -> str:
    """The sentence that refuses `key`, with the closest that exists among the kinds of this run."""
    known = list(known_keys(kinds))
    group = key.rpartition(".")[0]
    siblings = ", ".join(name for name in known if name.rpartition(".")[0] == group)
    if kinds and key in known_keys():
        kind = f"{group}.{KIND_KEYS[group]}={kinds[group]}"
        return f"There is no setting {key!r} where {kind}. That kind has {siblings}. Another kind: {group}=NAME."
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else f" Known in its group: {siblings}."
    return f"There is no setting {key!r}.{hint}"


def refuse_unknown_overrides(arguments: list[str]) -> None:
    """Exit with a sentence for KEY=VALUE with a key that does not exist; Hydra's own answer advises a +, in vain."""
    said = unknown_override(arguments)
    if said is not None:
        if rank() == 0:
            print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


def unknown_override(arguments: Sequence[str]) -> str | None:
    """The sentence that refuses the first KEY=VALUE whose key does not exist; None where all do."""
    known = known_keys()
    groups = {name.rpartition(".")[0] for name in known} - {""}
    for argument in arguments:
        found = KEY_VALUE.match(argument)
        if found is None or found[1] in known or found[1] in groups:
            continue
        if found[1].startswith(("hydra.", *(f"{key}." for key in REPLACED_KEYS))):
            continue
        return "Write +experiment=NAME." if found[1] == "experiment" else unknown_key(found[1])
    return None


def laid_over(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """A command line with more overrides, which take the place of those of the same key: Hydra takes a group once.

    An override of a group (model=minilm) also takes the place of single settings of that group: model.name=NAME was
    said of another model.
    """
    own = {override_key(one) for one in overrides}
    return [*(one for one in arguments if not own & {(key := override_key(one)), key.partition(".")[0]}), *overrides]


def override_key(argument: str) -> str:
    """`model.name` of ++model.name=NAME."""
    return argument.lstrip("+~").partition("=")[0]


def as_meant(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra must be given them so that it reads what was written.

    Hydra would add new labels to the experiment's; here they take their place. Hydra's grammar gives braces, commas,
    spaces at the ends and = a meaning; the value of a setting that holds text is quoted, unless it is quoted already.
    With --multirun a comma separates jobs, so there values stay as they are.
    """
    sweep = bool(MULTIRUN_FLAGS & set(arguments))
    return [meant for argument in arguments for meant in _as_meant(argument, sweep=sweep)]


def _as_meant(argument: str, *, sweep: bool) -> list[str]:
    if argument.lstrip("+").startswith("question."):
        argument = re.sub(r"(?<!\\)\\n", "\n", argument)  # no plain quotes of a shell make a new line
    for key in REPLACED_KEYS:
        if argument.lstrip("+").startswith(f"{key}="):
            return [f"++{key}=null", f"++{argument.lstrip('+')}"]
        if argument.startswith(f"{key}."):  # one more beside those of the experiment
            name, _, value = argument.partition("=")
            return [f"++{name}={_members_quoted(value)}"]
    flag = argument.removeprefix("--")
    if flag != argument and known_keys().get(flag) is bool:  # --spreadsheet, as other commands have it
        return [f"++{flag}=true"]
    found = KEY_VALUE.match(argument)
    kind = known_keys().get(found[1]) if found else None
    if found is None or kind is None or sweep:
        return [argument]
    value = _quoted(found[2]) if kind in (str, str | None) else found[2]
    # ++ also adds a key that this experiment lacks: our own refusal then names the keys of its kind.
    return [f"++{found[1]}={value}"]


def _members_quoted(value: str) -> str:
    """A list of plain words, [method=tfidf,seed=1], with each in quotes: Hydra would stumble over their =."""
    found = re.fullmatch(r"\[([^\[\]{}\"']*)\]", value)
    if found is None:
        return value
    return "[" + ",".join(_quoted(one.strip()) for one in found[1].split(",") if one.strip()) + "]"


def _quoted(value: str) -> str:
    """The value in Hydra's double quotes; as it is where it is quoted, empty or null."""
    if value in ("", "null") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    # A quote inside takes a backslash, and backslashes before a quote are doubled.
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value) + '"'
