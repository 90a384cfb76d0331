"""Answers and periods for people: the same drawing wherever they are printed."""

from __future__ import annotations

from typing import Any, Final

from serving.terminal.console import Out

_BAR_CELLS: Final = 40


def answer(out: Out, result: dict[str, Any]) -> None:
    """An answer for people: the text, where it comes from, who earns, what it cost."""
    out.print(" ".join(result["answer"].split()), "")
    for number, citation in enumerate(result["citations"], 1):
        source = result["sources"][citation["source"]]
        start, end = citation["passage"]
        out.print(f"  [{number}] {source['title']} ({source['document_id']}), characters {start} to {end}")
    out.print("")
    rows = [
        (source["document_id"], source["contributor"], "cited" if source["cited"] else "", f"{source['share']:.1%}",
         "█" * round(source["share"] * 30))
        for source in result["sources"]
    ]  # fmt: skip
    rows.append(("no document", "", "", f"{result['model_residual']:.1%}", "░" * round(result["model_residual"] * 30)))
    out.table(["document", "contributor", "", "share", ""], rows, numbers=[3])
    receipt = result["receipt"]
    out.print("", f"receipt {receipt['id']}: {receipt['charge']['amount']} {receipt['charge']['currency']}")


def audited(ablation: dict[str, Any]) -> str:
    """The audit by ablation in one line."""
    if not ablation["sampled"]:
        return "audit by ablation: no query was drawn"
    line = f"audit by ablation: {ablation['recomputed']} of {ablation['sampled']} drawn queries recomputed"
    for name, measure in (("Kendall's tau", "kendall_tau"), ("linear datamodeling score", "lds")):
        if ablation[measure] is not None:
            line += f", {name} {ablation[measure]:.2f}"
    if ablation["recomputed"]:
        line += f" over {ablation['masks']} masks, {ablation['low']} low"
    return line


def earned(out: Out, summary: dict[str, Any]) -> None:
    """Who earned what, as bars."""
    amounts = [
        (each["contributor"], float(each["credited"]["amount"]), each["credited"]["amount"])
        for each in summary["statements"]
    ]
    amounts.sort(key=lambda each: (-each[1], each[0]))
    amounts.append(("(no document: residual)", float(summary["residual"]["amount"]), summary["residual"]["amount"]))
    largest = max((value for _, value, _ in amounts), default=0.0) or 1.0
    rows = [(name, amount, bar(value / largest)) for name, value, amount in amounts]
    out.table(["contributor", f"earned ({summary['charged']['currency']})", ""], rows, numbers=[1])


def bar(part: float) -> str:
    """A bar for a part of the whole, between 0 and 1."""
    return "█" * round(part * _BAR_CELLS)


def moment(written: str | None) -> str:
    """A time in RFC 3339, to the second; empty without one."""
    return "" if written is None else written[:19].replace("T", " ")
