"""Classifiers from each kind of file, on small networks made here with random weights."""

import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from doodl.errors import ModelError
from doodl.guidance.classifier import ClassifierGuide, class_losses
from doodl.guidance.crops import CropViews
from doodl.guidance.files import read_state
from doodl.guidance.guidance import Guidance, GuideRow, load_guidance
from doodl.guidance.networks import load_classifier
from doodl.guidance.revisions import split_class
from doodl.guidance.spec import parse_guides
from doodl.guidance.wsdan import NamedWSDAN, SequentialWSDAN, build_wsdan
from doodl.recipes.config import CropConfig

LABELS = ["daisy", "dandelion, blowball", "rose", "sunflower", "tulip"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def images(batch=2, side=48, seed=0):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=5).eval()


@pytest.fixture(scope="module")
def timm_folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "label_names": LABELS,
        "pretrained_cfg": {
            "input_size": [3, 40, 40], "mean": MEAN, "std": STD,
            "interpolation": "bilinear", "classifier": "fc",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def prepared(pixels, side, mean=MEAN, std=STD, mode="bilinear"):
    """What a network sees, without our classes."""
    pixels = (pixels + 1) / 2
    if pixels.shape[-1] != side:
        pixels = F.interpolate(pixels, (side, side), mode=mode, antialias=True)
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_timm_folder_gives_the_networks_own_logits(timm_folder, network):
    classifier, label = load_classifier(f"{timm_folder}/rose")
    assert label == "rose"
    with torch.no_grad():
        expected = network(prepared(images(), 40))
    torch.testing.assert_close(classifier(images()), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in classifier.parameters())


def test_timm_name_takes_a_file_of_weights_and_the_labels_beside_it(timm_folder, tmp_path):
    weights = tmp_path / "mine.safetensors"
    save_file(load_file(timm_folder / "model.safetensors"), weights)
    classifier, label = load_classifier(f"test_resnet@{weights}")
    assert (classifier.num_classes, label, classifier.labels) == (5, None, ())
    (tmp_path / "mine.labels.txt").write_text("\n".join(LABELS) + "\n")
    classifier, label = load_classifier(f"test_resnet@{weights}/tulip")
    assert classifier.class_index(label) == 4


def test_timm_name_alone_is_found_in_the_hub_cache_or_says_how_to_pull_it(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"hf download timm/resnet50.a1_in1k"):
        load_classifier("resnet50.a1_in1k/goldfish")
    weights = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    asked = []

    def cached(repository, name):
        asked.append((repository, name))
        return str(weights)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    classifier, label = load_classifier("test_resnet.r160_in1k/goldfish")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert classifier.num_classes == 1000
    # ImageNet's labels have synonyms: "goldfish, Carassius auratus".
    assert classifier.class_index(label) == 1


def hugging_face_folder(folder, **changes):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=32, patch_size=8, num_labels=5, id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)}, **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    preprocessor = {
        "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "image_mean": MEAN, "image_std": STD, "resample": 3,
        "size": {"height": 32, "width": 32},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def test_hugging_face_folder_gives_the_networks_own_logits(tmp_path):
    model = hugging_face_folder(tmp_path)
    classifier, label = load_classifier(f"{tmp_path}/sunflower")
    assert classifier.class_index(label) == 3
    with torch.no_grad():
        expected = model(prepared(images(), 32, mode="bicubic")).logits
    torch.testing.assert_close(classifier(images()), expected, rtol=1e-4, atol=1e-5)
    assert not classifier.multi_label


def test_hugging_face_multi_label_networks_are_guided_by_binary_cross_entropy(tmp_path):
    hugging_face_folder(tmp_path, problem_type="multi_label_classification")
    guidance = load_guidance(parse_guides([f"classifier:{tmp_path}/rose=1"]), model="pocket")
    (guide,) = guidance.guides
    assert guide.binary


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"architectures": ["Evil"]}, "architecture 'Evil' is not one of"),
        ("config.json", {"architectures": ["Trainer"]}, "is not one of"),
        ("config.json", {"num_hidden_layers": 3}, "no weights for"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "scaled to"),
        ("preprocessor_config.json", {"size": {"height": 32, "width": 48}}, "only squares"),
    ],
)
def test_hugging_face_folder_that_cannot_be_trusted_is_refused(tmp_path, file, changes, words):
    hugging_face_folder(tmp_path)
    edit_json(tmp_path / file, **changes)
    with pytest.raises(ModelError, match=words):
        load_classifier(str(tmp_path))


def test_hugging_face_pickle_is_not_opened(tmp_path):
    model = hugging_face_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "no_such_net"}, "no timm model"),
        ({"architecture": "test_vit"}, "no last layer|cannot be loaded"),
        ({"label_names": LABELS[:3]}, "3 labels for 5 classes"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
    ],
)
def test_timm_folder_that_makes_no_sense_is_refused(timm_folder, tmp_path, changes, words):
    config = json.loads((timm_folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(timm_folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=words):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("value", ["no such model", "/nowhere/at all", "nowhere/rose", "x@y.pth"])
def test_a_model_that_is_not_there_says_what_may_be_named(value):
    with pytest.raises(ModelError, match="NAME@FILE"):
        split_class(value)


def random_state(module, seed=0):
    """Random weights for a module made on the meta device; batch statistics near the identity."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(name, tensor):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith("running_var"):
            return torch.rand(tensor.shape, generator=generator) + 0.5
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.2
        values = torch.randn(tensor.shape, generator=generator) * scale
        return values + 1 if name.endswith("bn.weight") else values

    return OrderedDict((name, drawn(name, t)) for name, t in module.state_dict().items())


def meta(make):
    with torch.device("meta"):
        return make()


# Three attention maps, four classes: the published ones have 32 and 100 to 200.
FEATURES_6E = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", None, "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *(None, "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d"),
    "Mixed_6e",
)


@pytest.fixture(scope="module")
def sequential_state():
    return random_state(meta(lambda: SequentialWSDAN(FEATURES_6E, 768, 3, 4)))


@pytest.fixture(scope="module")
def named_state():
    return random_state(meta(lambda: NamedWSDAN(3, 4)))


class ReachedError(Exception):
    """Ends a forward pass at a layer, with what the layer was given or gave."""


def mixed_6e(state, pixels, names=None):
    """Features (B, 768, h, w) of torchvision's own Inception-v3 under a checkpoint's tensors."""
    from torchvision.models import Inception3

    if names is not None:
        state = {
            f"{names[int(index)]}.{rest}": tensor
            for key, tensor in state.items() if key.startswith("features.")
            for index, rest in [key.removeprefix("features.").split(".", 1)]
        }  # fmt: skip
    network = meta(lambda: Inception3(num_classes=2, aux_logits=False, init_weights=False)).eval()
    kept = {k: v for k, v in state.items() if not k.startswith(("Mixed_7", "fc"))}
    report = network.load_state_dict(kept, strict=False, assign=True)
    assert all(key.startswith(("Mixed_7", "fc")) for key in report.missing_keys)
    assert report.unexpected_keys == []

    def reached(module, given, features):
        raise ReachedError(features)

    network.Mixed_6e.register_forward_hook(reached)
    with torch.no_grad(), pytest.raises(ReachedError) as caught:
        network(pixels)
    return caught.value.args[0]


def conv_bn_relu(state, name, features):
    kernel = state[f"{name}.conv.weight"]
    mean, variance, weight, bias = (
        state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(F.conv2d(features, kernel), mean, variance, weight, bias, eps=1e-3).relu()


def pooled_by_hand(features, attentions):
    """Bilinear attention pooling as the paper writes it, one map at a time."""
    rows = []
    for feature, attention in zip(features, attentions, strict=True):
        parts = torch.cat([(feature * one).mean((1, 2)) for one in attention])
        signed = torch.sign(parts) * torch.sqrt(parts.abs() + 1e-6)
        rows.append(signed / signed.norm())
    return torch.stack(rows) * 100


def test_wsdan_in_the_layout_of_its_pytorch_code(sequential_state, tmp_path):
    path = tmp_path / "birds.ckpt"
    checkpoint = {
        "logs": {"epoch": 80, "train_raw_topk_accuracy": np.array([98.5, 99.9])},
        "state_dict": OrderedDict((f"module.{k}", v) for k, v in sequential_state.items()),
        "feature_center": torch.zeros(4, 3 * 768),
    }
    torch.save(checkpoint, path)
    (tmp_path / "birds.labels.txt").write_text("wren\nrobin\nheron\ntern\n")
    classifier, label = load_classifier(f"{path}/heron")
    assert (label, classifier.class_index(label), classifier.size_px) == ("heron", 2, 448)
    pixels = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    features = mixed_6e(sequential_state, pixels, FEATURES_6E)
    maps = conv_bn_relu(sequential_state, "attentions", features)
    expected = F.linear(
        pooled_by_hand(features, maps), sequential_state["fc.weight"], sequential_state["fc.bias"]
    )
    got = classifier.network(pixels)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert got.std() > 0.1


def test_wsdan_in_the_layout_that_the_doodl_paper_used(named_state, tmp_path):
    path = tmp_path / "dog.pth.tar"
    extra = {"AuxLogits.fc.weight": torch.zeros(4, 768)}
    torch.save({"epoch": 80, "best_prec1": torch.tensor(89.0), "state_dict": {
        f"module.{k}": v for k, v in {**named_state, **extra}.items()}}, path)  # fmt: skip
    classifier, label = load_classifier(f"{path}/3")
    assert (label, classifier.size_px, classifier.num_classes) == ("3", 512, 4)
    pixels = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    features = mixed_6e(named_state, pixels)
    maps = conv_bn_relu(named_state, "Mixed_7a.branch3x3_1", features)[:, :3]
    expected = F.linear(
        pooled_by_hand(features, maps), named_state["fc_new.weight"], named_state["fc_new.bias"]
    )
    torch.testing.assert_close(classifier.network(pixels), expected, rtol=1e-4, atol=1e-4)
    # ImageNet's normalisation and then its code's own change of input come to [-1, 1] again.
    photo = images(1, 512)

    def reached(module, given):
        raise ReachedError(given[0])

    classifier.network.Conv2d_1a_3x3.register_forward_pre_hook(reached)
    with pytest.raises(ReachedError) as caught:
        classifier(photo)
    torch.testing.assert_close(caught.value.args[0], photo, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("features.5.conv.weight"), "does not fit Inception-v3"),
        (lambda s: s.update({"features.99.weight": torch.zeros(1)}), "unknown tensors features.99"),
        (lambda s: s.update({"fc.weight": torch.zeros(7)}), "want .classes, features."),
        (lambda s: s.update({"attentions.conv.weight": torch.zeros(3, 512, 1, 1)}), "512 features"),
    ],
)
def test_wsdan_checkpoint_of_another_make_is_refused(sequential_state, change, words):
    state = dict(sequential_state)
    change(state)
    with pytest.raises(ModelError, match=words):
        build_wsdan(state)


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch owned",)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Hostile()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="cannot be read as tensors"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_without_an_architecture_says_how_to_name_one(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"a.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="NAME@FILE"):
        load_classifier(str(path))


@pytest.mark.parametrize(
    ("label", "index"), [("rose", 2), ("Rose ", 2), ("blowball", 1), ("4", 4), ("dandelion", 1)]
)
def test_classes_are_found_by_name_synonym_and_number(timm_folder, label, index):
    assert load_classifier(str(timm_folder))[0].class_index(label) == index


@pytest.mark.parametrize("label", ["orchid", "5", "-1", ""])
def test_an_unknown_class_names_a_few(timm_folder, label):
    classifier, _ = load_classifier(str(timm_folder))
    with pytest.raises(ValueError, match=r"daisy, dandelion.*number from 0 to 4"):
        classifier.class_index(label)
    if label == "orchid":
        with pytest.raises(ModelError, match="daisy"):
            load_classifier(f"{timm_folder}/{label}")


def test_ambiguous_classes_are_refused(timm_folder, tmp_path):
    config = json.loads((timm_folder / "config.json").read_text())
    config["label_names"] = ["rose", "crane, bird", "crane, machine", "rose, wild", "tulip"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(timm_folder / "model.safetensors"), tmp_path / "model.safetensors")
    classifier, _ = load_classifier(str(tmp_path))
    assert classifier.class_index("rose") == 0  # a whole label comes before a synonym
    with pytest.raises(ValueError, match="ambiguous: it names the classes 1, 2"):
        classifier.class_index("crane")


def test_cross_entropies_are_minus_the_logs_of_the_probabilities():
    logits = torch.tensor([[2.0, -1.0, 0.5], [80.0, -90.0, 0.0]])
    classes = torch.tensor([2, 1])
    softmax = class_losses(logits, classes, binary=False).tolist()
    sigmoid = class_losses(logits, classes, binary=True).tolist()
    total = sum(math.exp(x) for x in (2.0, -1.0, 0.5))
    assert softmax[0] == pytest.approx(-math.log(math.exp(0.5) / total), rel=1e-6)
    assert sigmoid[0] == pytest.approx(-math.log(1 / (1 + math.exp(-0.5))), rel=1e-6)
    # Far from the class, where the probability rounds to 0, loss and slope are still there.
    assert softmax[1] == pytest.approx(170.0)
    assert sigmoid[1] == pytest.approx(90.0)


@pytest.mark.parametrize("loss", ["", "bce:"])
def test_classifier_loss_is_the_mean_over_crops_and_rows_may_name_the_class(timm_folder, loss):
    guidance = load_guidance(parse_guides([f"classifier:{loss}{timm_folder}=1"]), model="pocket")
    (guide,) = guidance.guides
    bound = guidance.bind([GuideRow(label="rose"), GuideRow(label="0")])
    crops = CropConfig(num_crops=1, whole_view=False)
    pixels = images(side=40)  # at the network's own size every crop is the whole frame
    got = bound.loss(pixels, [torch.Generator(), torch.Generator()], crops=crops)
    with torch.no_grad():
        logits = guide.classifier.network(prepared(pixels, 40)).double()
    scores = logits.sigmoid() if loss else logits.softmax(1)
    expected = -torch.stack([scores[0, 2], scores[1, 0]]).log()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    (values,) = bound.values(pixels).values()
    torch.testing.assert_close(values.double(), (-expected).exp(), rtol=1e-4, atol=1e-5)


def test_classifier_loss_over_crops_is_their_mean(timm_folder):
    guidance = load_guidance(parse_guides([f"classifier:{timm_folder}=1"]), model="pocket")
    (guide,) = guidance.guides
    bound = guidance.bind([GuideRow(label="rose"), GuideRow(label="0")])
    several = CropConfig(num_crops=4, whole_view=True)
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    larger = images(side=64)
    mean = bound.loss(larger, draws, crops=several)
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    views = CropViews(larger, draws, several).of(guide.classifier)
    classes = [2] * 5 + [0] * 5
    each = [bound_one(guide, view[None], c) for view, c in zip(views, classes, strict=True)]
    expected = torch.tensor([sum(each[:5]) / 5, sum(each[5:]) / 5])
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


def bound_one(guide, view, index):
    return -guide.classifier(view)[0].softmax(0)[index].log().item()


def test_a_row_without_a_class_is_refused(timm_folder):
    guidance = load_guidance(parse_guides([f"classifier:{timm_folder}=1"]), model="pocket")
    with pytest.raises(ValueError, match="has no class"):
        guidance.bind([GuideRow()])


def test_a_photos_class_gradient_does_not_depend_on_its_batch(timm_folder):
    classifier, _ = load_classifier(str(timm_folder))
    guidance = Guidance(parse_guides(["classifier:pocket=1"]), (ClassifierGuide(classifier),))
    rows = [GuideRow(label="rose"), GuideRow(label="tulip")]

    def gradient(places, bound):
        leaf = images()[places].requires_grad_()
        draws = [torch.Generator().manual_seed(i) for i in places]
        loss = bound.loss(leaf, draws, crops=CropConfig(num_crops=3))
        return torch.autograd.grad(loss.sum(), leaf)[0]

    together = gradient([0, 1], guidance.bind(rows))
    alone = gradient([1], guidance.bind(rows[1:]))
    assert ((alone[0] - together[1]).norm() / alone.norm()).item() < 1e-6
    kept = gradient([1], guidance.bind(rows).keep([1]))
    torch.testing.assert_close(kept, alone)
