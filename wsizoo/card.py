"""The model card: README.md with the metadata that the Hub indexes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
NOT_STATED = "unknown"  # as the Hub calls a licence that nobody has stated
SPDX_ON_HUB = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-4.0": "cc-by-4.0",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-NC-ND-4.0": "cc-by-nc-nd-4.0",
    NOT_STATED: NOT_STATED,
}


def model_card(config: dict[str, Any]) -> str:
    """README.md of a saved model, from its config.json."""
    spec, training = config["spec"], config["training"]
    body = [
        f"# {config['name']}",
        str(spec.get("summary", "")),
        "A slide model of [wsizoo](https://pypi.org/project/wsizoo): "
        + " -> ".join(composition(spec, config["fingerprint"]))
        + ".",
        "## Use",
        f'```python\nimport wsizoo\n\nmodel = wsizoo.load("hf:OWNER/{config["name"]}@COMMIT")\n'
        'out = model(wsizoo.read_bag("slide.h5"))\n```',
        _features(config["fingerprint"]),
        *(
            ["Under which licence its weights may be used, nobody has stated."]
            if spec["licence"] == NOT_STATED
            else []
        ),
        *(f"**Its weights hold {held}.**" for held in config.get("discloses", ())),
        "## Training and results",
        *([] if config["trained"] else ["**Not trained: its weights are random.**"]),
        *(_stated(training) or ["Not stated by the publisher."]),
        *_measured(training),
        "## Intended use and limits",
        *([str(training["intended_use"])] if training.get("intended_use") else []),
        str(training.get("limits") or "Research only. Not validated for diagnosis."),
        f"Source of the method: {spec['source']}",
    ]
    return (
        f"---\n{yaml.safe_dump(_metadata(config), sort_keys=False)}---\n\n"
        + "\n\n".join(body)
        + "\n"
    )


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    spec = config["spec"]
    licence = spec["licence"]
    known = SPDX_ON_HUB.get(licence)
    architecture = (spec.get("aggregator") or spec.get("model") or {}).get("name")
    pipeline = PIPELINES.get(str((spec.get("head") or {}).get("name")), "image-feature-extraction")
    return {
        "library_name": "wsizoo",
        "license": known or "other",
        **({} if known else {"license_name": licence}),
        "pipeline_tag": pipeline,
        "tags": [
            "wsizoo",
            "histopathology",
            "whole-slide-image",
            "multiple-instance-learning",
            str(architecture),
        ],
        **_index(config["name"], pipeline, _results(config["training"])),
    }


def _index(name: str, pipeline: str, results: dict[str, Any]) -> dict[str, Any]:
    """The Hub's `model-index`: measured results as it lists them; {} where there are none.

    Source: https://huggingface.co/docs/hub/model-cards (evaluation results).
    """
    metrics = [
        {
            "type": "recall" if metric.startswith("recall_of_") else metric,  # a word of the Hub's
            "name": f"{metric} ({results['part']})",
            "value": one["value"],
        }
        for metric, one in results.get("values", {}).items()
        if one.get("value") is not None
    ]
    if not metrics:
        return {}
    data = str(results["data"])
    dataset = {"name": data, "type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")}
    result = {"task": {"type": pipeline}, "dataset": dataset, "metrics": metrics}
    return {"model-index": [{"name": name, "results": [result]}]}


def _results(training: dict[str, Any]) -> dict[str, Any]:
    """`training["metrics"]` where it is of the shape that `wsizoo train` writes, else {}.

    That is: data (its name), part, level ("patient" or "slide"), values: name -> value, low, high,
    n.
    """
    metrics = training.get("metrics")
    known = isinstance(metrics, dict) and {"data", "part", "level", "values"} <= set(metrics)
    return dict(metrics) if isinstance(metrics, dict) and known else {}


def _measured(training: dict[str, Any]) -> list[str]:
    """The results as a table, intervals beside the points."""
    results = _results(training)
    if not results:
        return []
    lines = [
        f"| Metric ({results['part']} part, by {results['level']}) | Value | 95 % interval | n |",
        "|---|---|---|---|",
    ]
    for metric, one in results["values"].items():
        value, low, high = (_rounded(one.get(key)) for key in ("value", "low", "high"))
        interval = f"{low} to {high}" if "-" not in (low, high) else "-"
        interval += beside_interval(one)
        lines.append(f"| {metric} | {value} | {interval} | {one.get('n', '-')} |")
    return ["\n".join(lines)]


def beside_interval(measure: Mapping[str, Any]) -> str:
    """Where an interval is from, or why there is none, unless it is a plain bootstrap's.

    Of resamples that did not define the measure it tells from 1 % on.
    """
    method = measure.get("method", "bootstrap")
    undefined, drawn = measure.get("undefined", 0), measure.get("resamples", 0)
    if method != "bootstrap":
        return f" ({method})"
    return f" ({undefined} of {drawn} resamples left out)" if undefined > drawn / 100 else ""


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def composition(spec: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> list[str]:
    """Names of a model's parts, in the order in which a slide goes through them.

    Args:
        spec: its parts. fingerprint: of its features; their encoder counts, as an entry whose
            weights were not taken may name another.
    """
    parts = (spec.get(part) for part in ("selector", "aggregator", "model", "head"))
    encoder = fingerprint.get("encoder") or (spec.get("encoder") or {}).get("name")
    return [*([str(encoder)] if encoder else []), *(str(part["name"]) for part in parts if part)]


def _stated(training: dict[str, Any]) -> list[str]:
    apart = {"limits", "intended_use"} | ({"metrics"} if _results(training) else set())
    return [f"- {key}: {value}" for key, value in training.items() if key not in apart]


def _features(fingerprint: dict[str, Any]) -> str:
    stated = [f"{key} `{value}`" for key, value in fingerprint.items() if key != "declared"]
    if not stated:
        return "What made its features is not stated by the publisher."
    return f"Features must be made so, others are refused: {', '.join(stated)}."
