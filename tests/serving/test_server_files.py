"""The files in serving/: they parse as what they claim to be, and agree with one another."""

import pathlib
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format

from kzoo.serving.server import ModelServer, text_proto
from kzoo.serving.server.config import read_config_file, validated_models
from kzoo.serving.server.messages import BatchingParameters, MonitoringConfig

SERVING = pathlib.Path(__file__).parents[2] / "serving"


def manifest(name):
    return yaml.safe_load((SERVING / "kubernetes" / name).read_text())


def test_models_config():
    models = validated_models(read_config_file(SERVING / "models.config"))
    model = models["digits_densenet"]
    served = list(model.model_version_policy.specific.versions)
    assert set(model.version_labels.values()) <= set(served)
    assert model.version_labels["stable"] == 1


def test_models_config_with_the_canary_lines_uncommented():
    text = (SERVING / "models.config").read_text()
    text = text.replace("# versions: 2", "versions: 2").replace(
        "# version_labels {", "version_labels {"
    )
    config = text_format.Parse(text, type(read_config_file(SERVING / "models.config"))())
    (model,) = validated_models(config).values()
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}
    assert list(model.model_version_policy.specific.versions) == [1, 2]


def test_models_config_serves(tmp_path, half_version, connect):
    """The file as it is, but for the base path, starts a server that knows its label."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "1").symlink_to(half_version(2.0))
    file = tmp_path / "models.config"
    text = (SERVING / "models.config").read_text()
    file.write_text(text.replace("/models/digits_densenet", str(tmp_path / "models")))
    with ModelServer(
        model_config_file=file,
        grpc_port=0,
        rest_port=0,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        client = connect(server)
        answer = client.post("digits_densenet/labels/stable:predict", {"instances": [1]})
        client.close()
    assert answer == (200, {"predictions": [2.5]})


def test_batching_config():
    config = text_proto.read(SERVING / "batching.config", BatchingParameters())
    sizes = list(config.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == config.max_batch_size.value


def test_monitoring_config():
    file = SERVING / "monitoring.config"
    config = text_proto.read(file, MonitoringConfig()).prometheus_config
    assert config.enable
    annotations = manifest("deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == config.path


def test_compose_mounts_what_its_flags_name():
    (service,) = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"].values()
    assert service["image"].startswith("tensorflow/serving:")
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    files = [flag.split("=")[1] for flag in service["command"] if "_file=" in flag]
    assert len(files) == 3
    for file in files:
        assert (SERVING / mounted[file]).is_file()
    (model,) = validated_models(read_config_file(SERVING / "models.config")).values()
    assert mounted[model.base_path] == f"../saved_models/{model.name}"
    assert [port.split(":")[-1] for port in service["ports"]] == ["8500", "8501"]


def test_kubernetes_manifests_fit_together():
    deployment, service = manifest("deployment.yaml"), manifest("service.yaml")
    autoscaler = manifest("autoscaler.yaml")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    (model,) = validated_models(read_config_file(SERVING / "models.config"))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{model}", "port": "rest"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for flag in container["args"]:
        if "_file=" in flag:
            assert str(pathlib.PurePosixPath(flag.split("=")[1]).parent) in mounts


@pytest.mark.parametrize(
    "file", sorted((SERVING / "kubernetes").glob("*.yaml")), ids=lambda path: path.name
)
def test_kubernetes_knows_every_field(file):
    """Strictly against the schemas that the package carries: no unknown or misspelt field."""
    for document in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_autoscaler_follows_the_servers_own_counter():
    (rule,) = yaml.safe_load((SERVING / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    asked = [
        metric["pods"]
        for metric in manifest("autoscaler.yaml")["spec"]["metrics"]
        if "pods" in metric
    ]
    assert [pods["metric"]["name"] for pods in asked] == [rule["name"]["as"]]
    for query in (rule["seriesQuery"], rule["metricsQuery"]):
        assert '__name__=":tensorflow:serving:request_count"' in query


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_compose_reads_its_file():
    command = ["docker", "compose", "-f", SERVING / "compose.yaml", "config", "--quiet"]
    if subprocess.run([*command[:2], "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_readme_names_every_file():
    readme = (SERVING / "README.md").read_text()
    for file in SERVING.iterdir():
        if file.name != "README.md":
            assert file.name in readme
