"""Exports: every GPU of the plan is deployed, the target reads what is written, and what it cannot is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from estimator.errors import BestServeError
from estimator.requests import Requests
from search.edge import read_yaml
from search.export.checkpoint import Checkpoint, checkpoint_of
from search.export.deployment import Deployment, deployment_of
from search.export.dynamo import dynamo_files, graph
from search.export.expressible import RAY_ACCELERATORS, TARGETS, reason_against, require_expressible
from search.export.files import write_folder
from search.export.flags import sglang_flags, vllm_flags
from search.export.kit import BLOCK_TOKENS, guidellm_scenario, inference_perf_config, trace, vllm_bench_flags
from search.export.llm_d import BASES, llm_d_files
from search.export.placement import place
from search.export.ray_serve import llm_config, ray_files, serve_config
from search.export.scripts import sglang_files, vllm_files
from search.export.write import WRITERS, export
from search.planner import plan
from search.spec import Spec, load_spec, parse_spec
from spaces.strategy import Strategy
from tests.export_helpers import (
    deployment_for,
    environment_of,
    exported_words,
    flags_of,
    known,
    load_yaml,
    strategies,
)
from tests.export_options import FOLDER, derive, recorded

VLLM_VERSIONS = ("0.19.0", "0.29.0", "0.31.0", "0.33.0")
SGLANG_VERSIONS = ("0.5.9", "0.5.21", "0.5.23")
WRITTEN = (
    "3m-tp2@h100_sxm,tokens=2048,seqs=64",
    "1m-tp8-pp2@h100_sxm",
    "2m-tp2-dp8-ep16@h100_sxm,seqs=256",
    "3p-tp1@h100_sxm,tokens=16384+2d-tp4@h200_sxm,seqs=64",
    "5p-tp2-dp2-ep4@h200_sxm+1d-tp1-dp4@h200_sxm",
)
ROOT = Path(__file__).parent.parent
FILTERS = [HealthCheck.filter_too_much]  # of any strategy, those that the target expresses


def written(deployment: Deployment, target: str) -> dict[str, str]:
    """The target's files."""
    return WRITERS[target](deployment)


def gpus_in(files: dict[str, str], target: str) -> int:
    """GPUs that the files themselves ask for, whatever made them."""
    if target in ("vllm", "sglang"):
        scripts = [text for name, text in files.items() if name.startswith("serve/")]
        return sum(len(environment_of(text)["CUDA_VISIBLE_DEVICES"].split(",")) for text in scripts)
    if target == "ray-serve-llm":
        (application,) = load_yaml(files["serve_config.yaml"])["applications"]
        arguments = application["args"]
        configs = arguments.get("llm_configs") or list(arguments.values())
        return sum(
            config["deployment_config"]["num_replicas"]
            * config["engine_kwargs"]["tensor_parallel_size"]
            * config["engine_kwargs"].get("pipeline_parallel_size", 1)
            * config["engine_kwargs"].get("data_parallel_size", 1)
            for config in configs
        )
    if target == "dynamo":
        components = load_yaml(files["graph.yaml"])["spec"]["components"]
        return sum(
            component["replicas"]
            * component.get("multinode", {}).get("nodeCount", 1)
            * int(pod_gpus(component["podTemplate"]["spec"]))
            for component in components
            if component["type"] != "frontend"
        )
    patches = [load_yaml(text) for name, text in files.items() if name.startswith("patch-")]
    return sum(patch["spec"]["replicas"] * int(pod_gpus(patch["spec"]["template"]["spec"])) for patch in patches)


def pod_gpus(pod: dict[str, Any]) -> str:
    """GPUs that a pod's only container may take."""
    (container,) = pod["containers"]
    found: str = container["resources"]["limits"]["nvidia.com/gpu"]
    return found


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None)
@given(strategy=strategies())
def test_every_gpu_of_the_plan_is_deployed(target: str, strategy: Strategy) -> None:
    """Replicas × GPUs per replica, counted in the files alone, are the plan's GPUs; or the target refuses."""
    for engine in TARGETS[target]:
        deployment = deployment_for(strategy, engine)
        reason = reason_against(deployment, target)
        if reason is None:
            require_expressible(deployment, target)
            assert gpus_in(written(deployment, target), target) == strategy.num_gpus
        else:
            with pytest.raises(BestServeError, match=re.escape(reason)):
                require_expressible(deployment, target)


@settings(max_examples=100, deadline=None, suppress_health_check=FILTERS)
@given(strategy=strategies())
def test_instances_share_nodes_without_sharing_gpus_or_ports(strategy: Strategy) -> None:
    """No GPU, HTTP port or side channel of a node is given to two shards, and none lies outside the node."""
    deployment = deployment_for(strategy)
    assume(reason_against(deployment, "vllm") is None)
    shards = place(deployment)
    devices = [(shard.host, device) for shard in shards for device in shard.devices]
    ports = [(shard.host, shard.nixl_port + rank) for shard in shards for rank in range(shard.pool.parallelism.dp)] + [
        (shard.host, shard.port) for shard in shards
    ]
    assert len(set(devices)) == len(devices) == strategy.num_gpus
    assert len(set(ports)) == len(ports)
    assert all(max(shard.devices) < shard.pool.gpu.gpus_per_node for shard in shards)
    hosts = {(s.pool.name, s.instance, s.host) for s in shards}
    assert len(hosts) == len(shards), "two shards of one instance on one node"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@settings(max_examples=80, deadline=None, suppress_health_check=FILTERS)
@given(strategy=strategies())
def test_commands_say_the_same_degrees_and_limits(engine: str, strategy: Strategy) -> None:
    """The flags of every script, read back by the engine's own rules, are the strategy's degrees and limits."""
    deployment = deployment_for(strategy, engine)
    assume(reason_against(deployment, engine) is None)
    files = written(deployment, engine)
    for pool in deployment.pools:
        scripts = [text for name, text in files.items() if name.startswith(f"serve/{pool.name}-")]
        assert len(scripts) == pool.count * pool.nodes_per_instance
        for text in scripts:
            flags = flags_of(exported_words(text))
            read = read_vllm(flags) if engine == "vllm" else read_sglang(flags)
            degrees = pool.parallelism
            assert read == (
                (degrees.tp, degrees.pp, degrees.dp, degrees.ep),
                (pool.limits.max_num_batched_tokens, pool.limits.max_num_seqs),
            )


def read_vllm(flags: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Degrees and limits per rank as vLLM takes them: experts over all tp × dp GPUs, limits per engine core."""
    tp, pp, dp = (int(flags.get(f"--{name}-parallel-size", 1)) for name in ("tensor", "pipeline", "data"))
    ep = tp * dp if "--enable-expert-parallel" in flags else 1
    return (tp, pp, dp, ep), (int(flags["--max-num-batched-tokens"]), int(flags["--max-num-seqs"]))


def read_sglang(flags: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, int]]:
    """As SGLang takes them: tp counts all GPUs of a stage; chunk and running requests are divided by dp."""
    dp = int(flags.get("--dp-size", 1))
    assert ("--enable-dp-attention" in flags) == (dp > 1)
    degrees = (int(flags["--tp-size"]) // dp, int(flags.get("--pp-size", 1)), dp, int(flags.get("--ep-size", 1)))
    return degrees, (int(flags["--chunked-prefill-size"]) // dp, int(flags["--max-running-requests"]) // dp)


@settings(max_examples=80, deadline=None)
@given(strategy=strategies())
def test_every_flag_is_an_option_of_the_engine(strategy: Strategy) -> None:
    """Flags of scripts and workers exist in the planned release, in those that images carry, and in the newest."""
    for target, engine, versions in (("vllm", "vllm", VLLM_VERSIONS), ("sglang", "sglang", SGLANG_VERSIONS)):
        deployment = deployment_for(strategy, engine, windowed=True, cached_frac=0.5)
        if reason_against(deployment, target) is not None:
            continue
        files = written(deployment, target)
        used = {name for text in serve_scripts(files) for name in flags_of(exported_words(text))}
        for version in versions:
            options = recorded(engine, version)["options"]["serve"]
            assert [name for name in used if not known(options, name)] == []
        if "router.sh" in files:
            routed = flags_of(exported_words(files["router.sh"]))
            router = recorded(f"{engine}_router", "0.1.17" if engine == "vllm" else "0.3.2")
            assert set(routed) <= set(router["options"]["router"])
            assert routed["--policy"] == strategy.router
            assert strategy.router in router["words"]["--policy"]


def serve_scripts(files: dict[str, str]) -> list[str]:
    """The scripts that start instances."""
    return [text for name, text in files.items() if name.startswith("serve/")]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@settings(max_examples=60, deadline=None, suppress_health_check=FILTERS)
@given(strategy=strategies())
def test_dynamo_workers_take_their_flags(engine: str, strategy: Strategy) -> None:
    """Worker arguments are Dynamo's own or the bundled engine's; graph fields are those of the operator's types."""
    deployment = deployment_for(strategy, engine)
    assume(reason_against(deployment, "dynamo") is None)
    crd = json.loads((FOLDER / "dynamo_crd.json").read_text())
    options = set(recorded("ai_dynamo", "1.6.1")["options"][engine])
    if engine != "trtllm":
        options |= set(recorded(engine, "0.31.0" if engine == "vllm" else "0.5.21")["options"]["serve"])
    loaded = load_yaml(dynamo_files(deployment)["graph.yaml"])
    assert loaded == graph(deployment)
    spec = loaded["spec"]
    (mode,) = spec["components"][0]["podTemplate"]["spec"]["containers"][0]["env"]
    assert mode["value"] in recorded("ai_dynamo", "1.6.1")["words"]["--router-mode"]
    assert set(spec) <= set(crd["spec"])
    assert spec["backendFramework"] in crd["backendFramework"]
    for component in spec["components"]:
        assert set(component) <= set(crd["component"])
        assert component["type"] in crd["type"]
        assert re.fullmatch(crd["name_pattern"], component["name"])
        assert set(component.get("multinode", {})) <= set(crd["multinode"])
        (container,) = component["podTemplate"]["spec"]["containers"]
        assert container["name"] == "main"
        assert container["image"].endswith(":1.6.1")
        assert all(isinstance(word, str) for word in container.get("args", []))
        assert [name for name in flags_of(container.get("args", [])) if not known(dict.fromkeys(options), name)] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pydantic's, in Ray's own models
@pytest.mark.parametrize("text", WRITTEN)
def test_ray_reads_its_config(text: str) -> None:
    """Ray's ServeDeploySchema and LLMConfig accept the file; every engine argument is a field of vLLM's EngineArgs."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    deployment = deployment_for(text)
    loaded = load_yaml(ray_files(deployment)["serve_config.yaml"])
    assert loaded == serve_config(deployment)
    (application,) = ServeDeploySchema.model_validate(loaded).applications
    assert application.import_path.startswith("ray.serve.llm:build_")
    arguments = application.args
    configs = arguments.get("llm_configs") or list(arguments.values())
    assert len(configs) == len(deployment.pools)
    for config, pool in zip(configs, deployment.pools, strict=True):
        read = LLMConfig.model_validate(config)
        assert read.accelerator_type == RAY_ACCELERATORS[pool.gpu.name]
        assert read.deployment_config["num_replicas"] == pool.count
        for version in VLLM_VERSIONS:
            assert set(read.engine_kwargs) <= set(recorded("vllm", version)["classes"]["EngineArgs"])
    with pytest.raises(ValueError, match="Unsupported accelerator type"):
        LLMConfig.model_validate(configs[0] | {"accelerator_type": "h100_sxm"})


def test_ray_routes_as_planned() -> None:
    """Round robin names a class of Ray's own; power of two choices is Serve's default and names none."""
    from ray.serve.config import RequestRouterConfig

    (pool,) = deployment_for("2m-tp1@l40s").pools
    config = llm_config(deployment_for("2m-tp1@l40s"), pool)["deployment_config"]["request_router_config"]
    router = RequestRouterConfig.model_validate(config).get_request_router_class()
    assert router.__name__ == "RoundRobinRouter"
    default = llm_config(deployment_for("2m-tp1@l40s,router=power_of_two"), pool)["deployment_config"]
    assert default == {"num_replicas": 2}
    assert RequestRouterConfig().get_request_router_class().__name__ == "PowerOfTwoChoicesRequestRouter"


def test_ray_builders_exist() -> None:
    """The three import paths are functions that ray.serve.llm defines."""
    import ast
    from importlib.util import find_spec

    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "serve" / "llm" / "__init__.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for text in WRITTEN:
        (application,) = serve_config(deployment_for(text))["applications"]
        assert application["import_path"].split(":")[1] in functions


@pytest.mark.parametrize("text", [text for text in WRITTEN if "pp2" not in text and "dp8" not in text])
def test_kubernetes_reads_deployments_and_pods(text: str) -> None:
    """Patches completed by what the base holds, and pods of a graph, are valid by Kubernetes' own schema."""
    from kubernetes_validate import validate

    bases = json.loads((FOLDER / "llm_d.json").read_text())
    deployment = deployment_for(text)
    files = llm_d_files(deployment)
    overlay = load_yaml(files["kustomization.yaml"])
    assert set(overlay) <= set(bases["kustomization"])
    assert {patch["path"] for patch in overlay["patches"]} == set(files) - {"kustomization.yaml"}
    path, commit = BASES[deployment.pools[-1].name]
    assert overlay["resources"] == [f"https://github.com/llm-d/llm-d//{path}?ref={commit}"]
    for name in set(files) - {"kustomization.yaml"}:
        patch = load_yaml(files[name])
        assert patch["metadata"]["name"] in bases["deployments"]
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        assert container["name"] == bases["container"]
        validate(completed(patch["spec"]["template"]["spec"], patch["spec"]["replicas"]), "1.30", strict=True)
    for component in graph(deployment)["spec"]["components"]:
        validate(completed(component["podTemplate"]["spec"], component["replicas"]), "1.30", strict=True)


def completed(pod: dict[str, Any], replicas: int) -> dict[str, Any]:
    """A whole Deployment around a pod's spec."""
    labels = {"app": "plan"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plan"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def test_bash_and_shellcheck_accept_every_script(tmp_path: Path) -> None:
    """`bash -n` parses and shellcheck finds nothing in the scripts of both targets, also with odd model paths."""
    scripts = []
    for number, text in enumerate(WRITTEN):
        for target in ("vllm", "sglang"):
            checkpoint = Checkpoint(path="/models/a b'c")
            deployment = deployment_for(text, target, checkpoint=checkpoint)
            if reason_against(deployment, target) is None:
                folder = tmp_path / f"{target}{number}"
                write_folder(folder, written(deployment, target))
                scripts += sorted(folder.rglob("*.sh"))
                words = exported_words((folder / "serve").glob("*.sh").__next__().read_text())
                assert checkpoint.path in words
    assert len(scripts) > 20
    for script in scripts:
        ran = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert script.stat().st_mode & 0o111
    shellcheck = Path(sys.executable).parent / "shellcheck"
    ran = subprocess.run([shellcheck, "-s", "bash", *scripts], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_scripts_start_what_they_say(tmp_path: Path) -> None:
    """Run by bash beside programs that only print, scripts hand engine and router their words, hosts filled in."""
    checkpoint = Checkpoint(path="/models/a b'c $d")
    deployment = deployment_for("2p-tp1@h100_sxm+1d-tp8@h100_sxm", checkpoint=checkpoint)
    write_folder(tmp_path / "out", vllm_files(deployment))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("vllm", "vllm-router"):
        code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
        (programs / name).chmod(0o755)
    hosts = tmp_path / "out" / "hosts.env"
    text = hosts.read_text()
    assert "export H100_SXM_0=h100-sxm-0  # decode-0" in text
    hosts.write_text(text.replace("=h100-sxm-0", "=10.0.0.7").replace("=h100-sxm-1", "=10.0.0.8"))

    def started(script: str) -> tuple[list[str], dict[str, str]]:
        environment = {"PATH": f"{programs}:/usr/bin:/bin"}
        ran = subprocess.run(
            [tmp_path / "out" / script], capture_output=True, text=True, env=environment, check=True, cwd="/"
        )
        words, variables = json.loads(ran.stdout)
        return words, variables

    words, variables = started("serve/prefill-1.sh")
    assert words[:2] == ["serve", checkpoint.path]
    assert json.loads(flags_of(words)["--kv-transfer-config"])["kv_connector"] == "NixlConnector"
    assert variables["CUDA_VISIBLE_DEVICES"] == "1"
    assert variables["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.8"
    routed, _ = started("router.sh")
    urls = [routed[index + 1] for index, word in enumerate(routed) if word in ("--prefill", "--decode")]
    assert urls == ["http://10.0.0.8:8000", "http://10.0.0.8:8001", "http://10.0.0.7:8000"]


@pytest.mark.parametrize(
    ("text", "engine", "target", "reason", "accepted"),
    [
        ("2m-tp2@h100_sxm,policy=static", "vllm", "vllm", "no policy static", "no target can express this one"),
        ("1p-tp1@l40s,policy=tetriinfer+1d-tp1@l40s", "vllm", "dynamo", "no policy tetriinfer", "no target can"),
        ("2m-tp2@h100_sxm,policy=prefill_first", "vllm", "ray-serve-llm", "no policy prefill_first", "no target can"),
        ("2m-tp2@h100_sxm", "sglang", "vllm", "planned for sglang, vllm runs vllm", "--target sglang or dynamo"),
        ("2m-tp2@h100_sxm", "trtllm", "sglang", "planned for trtllm, sglang runs sglang", "--target dynamo"),
        ("2m-tp2@h100_sxm", "trtllm", "llm-d", "planned for trtllm", "--target dynamo"),
        ("1m-tp4-dp2-ep2@h100_sxm", "vllm", "vllm", "all tp × dp = 8 GPUs or none, not ep = 2", "no target can"),
        ("1m-tp2@h100_sxm,tokens=512,seqs=1024", "vllm", "vllm", "tokens ≥ seqs, not 512 < 1024", "no target can"),
        ("1p-tp1-pp2@l40s+1d-tp1@l40s", "vllm", "vllm", "between pipeline stages", "no target can"),
        ("1m-tp2-pp2@l40s", "sglang", "sglang", "under pipeline parallelism", "no target can"),
        ("1p-tp2@l40s+1d-tp1-pp2@l40s", "sglang", "dynamo", "without pipeline stages only", "no target can"),
        ("1m-tp2-dp2@h100_sxm", "trtllm", "dynamo", "has tp = 1 within a rank, not 2", "no target can"),
        ("1m-tp8-pp2@h100_sxm", "vllm", "llm-d", "hold one node, 16 GPUs", "--target vllm or ray-serve-llm or dynamo"),
        ("1m-tp4-pp2-dp2@h100_sxm", "vllm", "vllm", "without stages, not over 2", "--target ray-serve-llm or dynamo"),
        (
            "1p-tp1@b300_sxm+1d-tp1@h100_sxm",
            "vllm",
            "llm-d",
            "b300_sxm is not among the known node labels",
            "vllm or ray",
        ),
        ("1p-tp8@h100_sxm+1d-tp4@h100_sxm", "vllm", "vllm", "cannot shrink tp = 8 with 4 KV heads", "no target can"),
        ("2m-tp1@l40s,router=random", "vllm", "ray-serve-llm", "no router random", "vllm or dynamo or llm-d"),
        ("2m-tp1@l40s,router=least_outstanding", "vllm", "vllm", "no policy of least outstanding", "dynamo or llm-d"),
        ("1p-tp8@h100_sxm+1d-tp3@h100_sxm", "sglang", "sglang", "only if one divides the other", "no target can"),
    ],
)
def test_what_a_target_cannot_express_is_refused(
    text: str, engine: str, target: str, reason: str, accepted: str
) -> None:
    """One sentence names the strategy, the reason and the targets that can."""
    deployment = deployment_for(text, engine, num_kv_heads=4)
    with pytest.raises(BestServeError) as error:
        require_expressible(deployment, target)
    assert text in str(error.value)
    assert reason in str(error.value)
    assert accepted in str(error.value)


def test_what_the_plan_rests_on_reaches_the_engine() -> None:
    """Memory share, cache format, quantisation, cached prefixes, policy and hand-over each have their flag."""
    (pool,) = deployment_for("1m-tp2@h100_sxm").pools
    plain = vllm_flags(deployment_for("1m-tp2@h100_sxm"), pool)
    assert plain["--gpu-memory-utilization"] == 0.9
    assert plain["--kv-cache-dtype"] == "auto"
    assert "--quantization" not in plain
    assert "--kv-transfer-config" not in plain
    fp8 = Checkpoint(path="m", online_fp8=True)
    changed = deployment_for("1m-tp2@h100_sxm", kv_dtype="fp8", checkpoint=fp8, cached_frac=0.3)
    flags = vllm_flags(changed, pool)
    assert (flags["--kv-cache-dtype"], flags["--quantization"]) == ("fp8", "fp8")
    assert "--enable-prefix-caching" in flags
    words = recorded("vllm", "0.19.0")["words"]
    assert {"auto", "fp8", "bfloat16"} <= set(words["CacheDType"])
    assert plain["--scheduling-policy"] in words["SchedulerPolicy"]
    assert vllm_flags(deployment_for("1m-tp2@h100_sxm", sparse_latent=True), pool)["--kv-cache-dtype"] == "bfloat16"
    both = deployment_for("1p-tp1@l40s+1d-tp1@l40s", "sglang", kv_dtype="fp8", checkpoint=fp8)
    theirs = [sglang_flags(both, one) for one in both.pools]
    assert [one["--disaggregation-mode"] for one in theirs] == ["prefill", "decode"]
    sglang = recorded("sglang", "0.5.9")["words"]
    assert theirs[0]["--kv-cache-dtype"] in sglang["--kv-cache-dtype"]
    assert theirs[0]["--quantization"] in sglang["QUANTIZATION_CHOICES"]
    assert theirs[0]["--disaggregation-transfer-backend"] in sglang["DISAGG_TRANSFER_BACKEND_CHOICES"]
    assert "--enable-mixed-chunk" in sglang_flags(deployment_for("1m-tp1@l40s", "sglang"), pool)
    first = deployment_for("1m-tp1@l40s,policy=prefill_first", "sglang")
    assert "--enable-mixed-chunk" not in sglang_flags(first, pool)


def test_instances_over_nodes_find_their_leader() -> None:
    """Every node of an instance names the first one's address and its own rank; only the first answers requests."""
    files = vllm_files(deployment_for("2m-tp8-pp2@h100_sxm"))
    flags = {name: flags_of(exported_words(text)) for name, text in files.items() if name.startswith("serve/")}
    assert sorted(flags) == [f"serve/serve-{i}-node{rank}.sh" for i in (0, 1) for rank in (0, 1)]
    for instance in (0, 1):
        first, second = (flags[f"serve/serve-{instance}-node{rank}.sh"] for rank in (0, 1))
        assert first["--master-addr"] == second["--master-addr"] == f"${{H100_SXM_{2 * instance}}}"
        assert (first["--nnodes"], first["--node-rank"], second["--node-rank"]) == ("2", "0", "1")
        assert "--headless" in second
        assert "--port" in first
        assert "--headless" not in first
        assert "--port" not in second
    spread = vllm_files(deployment_for("1m-tp2-dp8-ep16@h100_sxm"))
    second = flags_of(exported_words(spread["serve/serve-0-node1.sh"]))
    assert (second["--data-parallel-size-local"], second["--data-parallel-start-rank"]) == ("4", "4")
    theirs = sglang_files(deployment_for("1m-tp8-dp2@h100_sxm", "sglang"))
    assert flags_of(exported_words(theirs["serve/serve-0-node1.sh"]))["--dist-init-addr"] == "${H100_SXM_0}:29500"


@pytest.mark.parametrize(
    ("model", "weights", "online"),
    [
        ("Qwen/Qwen3-32B", "bf16", False),
        ("Qwen/Qwen3-32B", "fp8", True),
        ("deepseek-ai/DeepSeek-V3", "fp8", False),
        ("openai/gpt-oss-120b", "fp4", False),
    ],
)
def test_weights_come_from_the_model_itself_where_they_can(model: str, weights: Any, online: bool) -> None:
    """Published formats are served as they are, bf16 can be quantised to fp8 while loading."""
    from estimator.catalogue.models import load_model

    assert checkpoint_of(model, load_model(model), weights, engine="vllm") == Checkpoint(path=model, online_fp8=online)


@pytest.mark.parametrize(
    ("model", "weights", "engine"),
    [
        ("Qwen/Qwen3-32B", "int4", "vllm"),
        ("deepseek-ai/DeepSeek-V3", "bf16", "sglang"),
        ("Qwen/Qwen3-32B", "fp8", "trtllm"),
    ],
)
def test_weights_that_nobody_published_must_be_named(model: str, weights: Any, engine: str) -> None:
    """Another format needs --checkpoint, which is then served without any flag of ours."""
    from estimator.catalogue.models import load_model

    with pytest.raises(BestServeError, match=rf"checkpoint.*plan serves {weights} weights on {engine}; accepted: --"):
        checkpoint_of(model, load_model(model), weights, engine=engine)
    given = checkpoint_of(model, load_model(model), weights, engine=engine, given="org/awq")
    assert given == Checkpoint(path="org/awq")


def test_trace_is_the_planned_load(quick: Spec) -> None:
    """Lengths and times are the workload's own; a block of text is shared only as far as prompts are cached."""
    requests = quick.problem().workload.draw(20.0, 400, 1)
    rows = [json.loads(line) for line in trace(requests).splitlines()]
    assert [row["input_length"] for row in rows] == requests.input_tokens.tolist()
    assert [row["output_length"] for row in rows] == requests.output_tokens.tolist()
    assert [row["timestamp"] for row in rows] == pytest.approx(requests.arrival_s.tolist(), abs=1e-6)
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // BLOCK_TOKENS) for row in rows)
    ids = [one for row in rows for one in row["hash_ids"]]
    assert len(set(ids)) == len(ids)
    cached = Requests(
        arrival_s=requests.arrival_s,
        input_tokens=requests.input_tokens,
        output_tokens=requests.output_tokens,
        cached_tokens=requests.input_tokens // 2,
    )
    shared = [json.loads(line)["hash_ids"] for line in trace(cached).splitlines()]
    for row, hit in zip(shared, cached.cached_tokens, strict=True):
        assert row[: hit // BLOCK_TOKENS] == list(range(hit // BLOCK_TOKENS))
    own = [one for row, hit in zip(shared, cached.cached_tokens, strict=True) for one in row[hit // BLOCK_TOKENS :]]
    assert len(set(own)) == len(own)
    assert min(own) >= max(hit // BLOCK_TOKENS for hit in cached.cached_tokens)


def test_benchmark_commands_use_what_the_tools_know(quick: Spec) -> None:
    """Options of `vllm bench serve` and fields of GuideLLM's and inference-perf's configurations are recorded ones."""
    problem = quick.problem()
    deployment = deployment_of(Strategy.parse("2m-tp2@h100_sxm"), quick, problem)
    flags = vllm_bench_flags(deployment, problem.slo, 500, "http://h:1")
    for version in ("0.29.0", "0.31.0", "0.33.0"):
        tool = recorded("vllm", version)
        assert set(flags) <= set(tool["options"]["bench"])
        assert flags["--dataset-name"] in tool["words"]["--dataset-name"]
    guidellm = recorded("guidellm", "0.8.1")["classes"]
    spec = guidellm_scenario(deployment, "http://h:1")["spec"]
    assert set(spec) <= set(guidellm["BenchmarkArgs"])
    assert set(spec["backend"]) <= set(guidellm["OpenAIHTTPBackendArgs"])
    assert set(spec["profile"]) <= set(guidellm["ReplayProfileArgs"])
    (data,) = spec["data"]
    assert set(data) <= set(guidellm["MooncakeTraceFormatArgs"]) | set(guidellm["TraceDataArgs"])
    perf = recorded("inference_perf", "0.7.0")["classes"]
    config = inference_perf_config(deployment, quick, problem, problem.workload.draw(20.0, 400, 1), "http://h:1")
    assert config is not None
    assert set(config) <= set(perf["Config"])
    for field, name in (("api", "APIConfig"), ("data", "DataConfig"), ("load", "LoadConfig")):
        assert set(config[field]) <= set(perf[name])
    assert set(config["data"]["input_distribution"]) <= set(perf["Distribution"])
    assert set(config["load"]["stages"][0]) <= set(perf["StandardLoadStage"])
    assert set(config["server"]) <= set(perf["ModelServerClientConfig"])


def test_options_are_derived_from_a_wheel(tmp_path: Path) -> None:
    """The recorder finds literal options, fields of option classes, f-strings and accepted words, and nothing else."""
    import zipfile

    wheel = tmp_path / "vllm-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "vllm/engine/arg_utils.py",
            "class EngineArgs:\n    model: str\n    seed: int = 0\n"
            'def add(g, prefix):\n    g.add_argument("--model", "-m", **kw)\n    g.add_argument(f"--{prefix}x-y")\n'
            '    g.print("--not-one")\n',
        )
        archive.writestr("vllm/entrypoints/openai/cli_args.py", "class FrontendArgs:\n    root_path: str = ''\n")
        archive.writestr("vllm/config/cache.py", 'CacheDType = Literal["auto", "fp8"]\n')
    found = derive(wheel)
    assert found["options"]["serve"] == ["--model", "--root-path", "--x-y"]
    assert found["classes"] == {"EngineArgs": ["model", "seed"]}
    assert found["words"] == {"CacheDType": ["auto", "fp8"]}


@pytest.fixture(scope="module")
def quick() -> Spec:
    """The quickstart's question."""
    return load_spec(ROOT / "runs" / "quickstart.yaml")


TINY = {
    "name": "tiny",
    "model": {"id": "llama-3.1-8b"},
    "traffic": {"rate_req_s": 4.0, "lengths": {"kind": "fixed", "input_tokens": 500, "output_tokens": 100}},
    "slo": {"ttft": {"p90_ms": 1000.0}, "tpot": {"p90_ms": 40.0}},
    "gpus": ["h100_sxm"],
    "search": {"max_gpus": 2, "tp": [1, 2], "pp": [1], "dp": [1], "ep": [1], "tokens": [8192], "seqs": [256]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    plan(parse_spec(TINY, folder=ROOT), out=folder, workers=0)
    return folder


def test_export_leaves_a_whole_folder(run: Path) -> None:
    """Files, README and summary are there, stamped; the same export again leaves the same bytes."""
    first = export(run, "vllm")
    assert first.folder == run / "export" / "vllm"
    contents = {path.relative_to(first.folder): path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert {str(name) for name in contents} == {*first.files, "README.md", "export.json"}
    for name, content in contents.items():
        if name.suffix in (".sh", ".yaml", ".env", ".md"):
            head = content.decode()[:400]
            assert "generated, not run" in head, name
            assert f"Run tiny, strategy {first.deployment.strategy}." in head, name
            assert "Planned for vllm 0.19." in head, name
    summary = json.loads(contents[Path("export.json")])
    assert summary["num_gpus"] == first.deployment.num_gpus
    assert "bestserve verify" in contents[Path("README.md")].decode()
    limits = read_yaml(first.folder / "verify" / "limits.yaml")
    assert [(row["metric"], row["limit_ms"]) for row in limits["targets"]] == [("ttft", 1000), ("tpot", 40)]
    assert all(0 < row["predicted_ms"] <= row["limit_ms"] for row in limits["targets"])
    export(run, "vllm")
    again = {path.relative_to(first.folder): path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert again == contents


def test_refused_export_writes_nothing(run: Path, tmp_path: Path) -> None:
    """A strategy that the target cannot express, or a folder that holds something else, leaves everything as it was."""
    with pytest.raises(BestServeError, match=r"no policy static.*--strategy '.*m-tp1@h100_sxm.*' at \$"):
        export(run, "dynamo", strategy="2m-tp1@h100_sxm,policy=static", out=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    with pytest.raises(BestServeError, match="holds something else"):
        export(run, "vllm", out=tmp_path / "letters")
    assert [path.name for path in tmp_path.rglob("*")] == ["letters", "a.txt"]
    with pytest.raises(BestServeError, match="holds no run"):
        export(tmp_path, "vllm")
