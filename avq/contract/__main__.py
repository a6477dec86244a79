"""``python -m avq.contract``: check an installed plugin against its contract.

Exit codes: 0 it keeps its contract, 1 it breaks a rule, 2 the request was wrong, 3 it cannot be checked here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from avq.config import key_values
from avq.engines import engine_by_name
from avq.errors import AvqError, PluginError, RefusedError, RequestError, nearest
from avq.plugins import PluginHost

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--quantizer", metavar="NAME", help="check a strategy, on a real workbench")
@click.option("--engine", metavar="NAME", help="check an engine, on a network with a known answer")
@click.option("--decoder", metavar="FAMILY", help="check a head family, on a model that has such a head")
@click.option("--source", metavar="URI", help="check a source type, on a URI that opens here")
@click.option("--sink", metavar="URI", help="check a sink type, on a URI that opens here; it is written")
@click.option("--option", "options", multiple=True, metavar="K=V", help="an option of the strategy")
@click.option("--model", type=_PATH, help="an ONNX file instead of the built-in detector")
@click.option("--data", type=_PATH, help="pictures for that model instead of drawn road scenes")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
def main(as_json: bool, **flags: Any) -> None:
    """Check one installed quantizer, engine, decoder, source or sink against its contract."""
    try:
        answer = _check(**flags)
    except AvqError as error:
        click.echo(f"error: {error}", err=True)
        if as_json:
            row = {"what": error.what, "seen": error.seen, "fix": error.fix}
            click.echo(json.dumps({"error": row, "exit_code": error.exit_code}))
        sys.exit(error.exit_code)
    click.echo(json.dumps(answer, indent=2) if as_json else _sentence(answer))


def _check(
    *,
    quantizer: str | None,
    engine: str | None,
    decoder: str | None,
    source: str | None,
    sink: str | None,
    options: tuple[str, ...],
    model: Path | None,
    data: Path | None,
) -> dict[str, Any]:
    if sum(name is not None for name in (quantizer, engine, decoder, source, sink)) != 1:
        raise RequestError(
            "name one thing to check",
            seen=f"quantizer {quantizer}, engine {engine}, decoder {decoder}, source {source}, sink {sink}",
            fix="one of --quantizer NAME, --engine NAME, --decoder FAMILY, --source URI, --sink URI",
        )
    host = PluginHost()
    if quantizer is not None:
        return _quantizer(host, quantizer, key_values(options), model, data)
    if options or data is not None:
        raise RequestError(
            "--option and --data are for quantizers", fix="leave them out, or name a --quantizer"
        )
    if engine is not None:
        return _engine(host, engine, model)
    if source is not None:
        return _source(host, source)
    if sink is not None:
        return _sink(host, sink)
    assert decoder is not None
    return _decoder(host, decoder, model)


def _quantizer(
    host: PluginHost, name: str, options: Mapping[str, str], model: Path | None, data: Path | None
) -> dict[str, Any]:
    from avq.builder.request import refused_targets
    from avq.contract.features import check_quantizer_features
    from avq.contract.workbench import check_strategy
    from avq.plugins import validate_options

    if (model is None) != (data is None):
        raise RequestError(
            "a model needs pictures of its own, and pictures a model", fix="--model M --data DIR"
        )
    strategy = host.quantizer(name)
    valid = validate_options(strategy, options)
    features = _judged(lambda: check_quantizer_features(strategy, valid))
    kept = _judged(lambda: check_strategy(strategy, options=options, model=model, data=data))
    plans = {
        one.target: {
            "points": len(one.plan.points),
            "int8_nodes": sum(p.precision == "int8" for p in one.plan.precisions.values()),
            "lost": one.score.fidelity.lost if one.score.fidelity else None,
        }
        for one in kept
    }
    refused = dict(refused_targets(strategy))
    return {
        "quantizer": name,
        "keeps_its_contract": True,
        "plans": plans,
        "refused_targets": refused,
        "features": list(features),
    }


def _engine(host: PluginHost, name: str, model: Path | None) -> dict[str, Any]:
    from avq.contract.engine_suite import check_engine
    from avq.contract.features import check_engine_features

    if model is not None:
        raise RequestError("engines are checked on a network with a known answer", fix="leave --model out")
    engine = engine_by_name(name, host.engines())
    checks = _judged(lambda: check_engine(engine))
    features = _judged(lambda: check_engine_features(engine))
    return {"engine": name, "keeps_its_contract": True, "checks": list(checks), "features": list(features)}


def _source(host: PluginHost, uri: str) -> dict[str, Any]:
    from avq.contract.features import check_source
    from avq.daemon import source_types
    from avq.sources.uri import source_type

    kind = source_type(uri, (*source_types(), *host.sources()))
    features = _judged(lambda: check_source(kind, uri))
    return {"source": uri, "keeps_its_contract": True, "features": list(features)}


def _sink(host: PluginHost, uri: str) -> dict[str, Any]:
    from avq.contract.features import check_sink
    from avq.daemon import sink_types
    from avq.sinks import sink_key

    kinds = {scheme: kind for kind in (*sink_types(), *host.sinks()) for scheme in kind.schemes}
    key = sink_key(uri, set(kinds))
    if key not in kinds:
        raise RequestError(f"no sink writes '{key}'", seen=uri, fix=nearest(key, kinds))
    features = _judged(lambda: check_sink(kinds[key], uri))
    return {"sink": uri, "keeps_its_contract": True, "features": list(features)}


def _decoder(host: PluginHost, family: str, model: Path | None) -> dict[str, Any]:
    from avq.builder.graph.model import load_graph
    from avq.contract.decoder_suite import check_decoder
    from avq.decoders import builtin_decoders, find_decoder
    from avq.scenes import builtin_detector_path

    decoder = find_decoder(family, (*builtin_decoders(), *host.decoders()))
    graph = load_graph(model or builtin_detector_path()).view
    if model is None and decoder.recognise(graph) is None:
        raise RequestError(
            f"the built-in detector has no {family} head to check with",
            seen=f"--decoder {family} without --model",
            fix=f"python -m avq.contract --decoder {family} --model A_DETECTOR_OF_THAT_FAMILY.onnx",
        )
    spec = _judged(lambda: check_decoder(decoder, graph))
    return {"decoder": family, "keeps_its_contract": True, "classes": spec.num_classes}


def _judged(body: Callable[[], Any]) -> Any:
    """Run a check; a broken contract becomes a refusal, exit code 1."""
    try:
        return body()
    except PluginError as error:
        raise RefusedError(error.what, seen=error.seen, fix=error.fix) from error


def _sentence(answer: Mapping[str, Any]) -> str:
    kind, name = next(iter(answer.items()))
    lines = [f"the {kind} '{name}' keeps its contract"]
    for target, plan in answer.get("plans", {}).items():
        lost = "" if plan["lost"] is None else f", {100 * plan['lost']:.2f} % of the boxes lost"
        lines.append(f"  {target}: {plan['points']} points, {plan['int8_nodes']} nodes in INT8{lost}")
    lines += [f"  {target}: refused, {why}" for target, why in answer.get("refused_targets", {}).items()]
    lines += [f"  {check}" for check in answer.get("checks", ())]
    lines += [f"  has {feature}" for feature in answer.get("features", ())]
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name="python -m avq.contract")
