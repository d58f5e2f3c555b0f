"""Ablations and learning rates: one part changed, the rest the preset's; resumed like all rows."""

import json
from dataclasses import replace

import pytest
import torch

from doodl.evaluation.ablation_tables import ablation_tables
from doodl.evaluation.ablations import ABLATIONS, RATES, acting, changed
from doodl.evaluation.cases import Draw
from doodl.evaluation.guided.ablation_tables import guided_ablation_tables
from doodl.evaluation.guided.run import run_guided
from doodl.evaluation.output import write_evaluation
from doodl.evaluation.run import run_evaluation
from doodl.evaluation.tuning import guided_tuning_tables, photo_tuning_tables
from doodl.evaluation.work import EvaluationSpec
from doodl.guidance.crops import CropViews
from doodl.pocket import weights_dir
from doodl.recipes.config import CropConfig, EditConfig
from doodl.recipes.presets import preset
from tests.doodl.test_evaluation import QUICK, Told, names, sources
from tests.doodl.test_evaluation_guided import ITEMS
from tests.doodl.test_evaluation_guided import spec as guided_spec

JUDGE = str(weights_dir() / "judge")
ASKED = ("crops-0", "belm", "unet-zero")


def test_ablations_that_are_the_preset_make_no_row_and_are_named():
    found = acting("photo", preset("pocket"))
    assert dict(found.left_out) == dict.fromkeys(
        ["crops-4", "momentum-0.9", "rescaled", "tied-gradients", "depth-0.5", "T-5", "blur-3",
         "p-rule", "locality-0"],
        "the preset as it is",
    )  # fmt: skip
    assert set(found.names) | set(dict(found.left_out)) == {
        name for name, ablation in ABLATIONS.items() if "photo" in ablation.tasks
    }


@pytest.mark.parametrize(("task", "name"), [("photo", "pocket"), ("generation", "pocket-text")])
def test_every_ablation_makes_a_recipe_of_its_own(task, name):
    config = preset(name)
    found = [n for n in acting(task, config).names if not ABLATIONS[n].zero_unet]
    recipes = {json.dumps(changed(ABLATIONS[n], config).to_dict()) for n in found}
    assert len(recipes) == len(found) > 15


def test_ablation_changes_its_part_and_nothing_else():
    config = preset("pocket-text")
    other = changed(ABLATIONS["untied"], config)
    assert (other.optimiser.tie_gradients, other.optimiser.tie_latents) == (False, False)
    ties = {"tie_gradients": True, "tie_latents": True}
    assert replace(other, optimiser=replace(other.optimiser, **ties)) == config
    assert changed(ABLATIONS["rate-2"], config).optimiser.learning_rate == 2.0


def test_ablation_that_does_not_fit_is_named_with_why():
    config = preset("pocket-text")
    short = replace(config, sampler=replace(config.sampler, num_inference_steps=10))
    left_out = dict(acting("generation", short).left_out)
    assert "at most num_inference_steps" in left_out["optimise-at-15"]
    assert "optimise-at-5" not in left_out


@pytest.mark.parametrize(("task", "name"), [("photo", "magic"), ("generation", "depth-1")])
def test_name_that_is_no_ablation_of_the_task_is_refused(task, name):
    with pytest.raises(ValueError, match=name):
        acting(task, preset("pocket"), [name])


def test_without_crops_the_loss_sees_the_whole_frame_alone():
    class Network:
        size_px = 16

        def resize(self, images):
            return torch.nn.functional.interpolate(images, (16, 16))

    images = torch.rand(2, 3, 40, 32)
    views = CropViews(images, [torch.Generator()] * 2, CropConfig(0, 0.3, True))
    assert torch.equal(views.of(Network()), Network().resize(images))
    assert views.mean(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="whole_view"):
        EditConfig(num_crops=0)


def photo_spec(methods, **options):
    draw = options.pop("draw", Draw(2, 0, 0, types=("hazy",)))
    return EvaluationSpec(
        JUDGE, draw, QUICK, methods=methods, directions=("up",), equal_strength=False, **options
    )


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("ablations")
    return out, run_evaluation(sources(2), photo_spec(("edit", *ASKED)), out, Told())


def test_table_has_the_preset_and_each_ablation_less_the_preset(ablated):
    out, evaluation = ablated
    assert [row["status"] for row in evaluation.rows if row["status"] == "failed"] == []
    (table,) = ablation_tables(evaluation, [("T-3", "no divisor."), ("x", "the preset as it is")])
    assert "x are the preset as it is; these do not fit the preset: T-3 (no divisor)" in (
        table.caption
    )
    values = {value["method"]: value for value in table.values}
    assert list(values) == ["edit", *ASKED]
    assert values["edit"]["less:referee_change"] is None

    def gains(method):
        rows = [row for row in evaluation.rows if row["method"] == method]
        return [row["referee_after"] - row["referee_before"] for row in rows]

    for name in ASKED:
        differences = [a - b for a, b in zip(gains(name), gains("edit"), strict=True)]
        mean = values[name]["less:referee_change"]["mean"]
        assert mean == pytest.approx(sum(differences) / 2, abs=1e-9)
    calls = {name: value["unet_calls"]["mean"] for name, value in values.items()}
    assert calls["unet-zero"] == 0 < calls["belm"] < calls["edit"] == calls["crops-0"]
    written = write_evaluation(evaluation, out, "the command", tables=[table], title="Ablations")
    text = written.tables_path.read_text()
    assert "the command" in text
    assert evaluation.revisions["model"] in text
    assert "](plots/ablations-dulled-photos-up.svg)" in text
    assert (out / "plots" / "ablations-dulled-photos-up.svg").is_file()


def test_preset_of_an_ablation_is_the_edit_of_every_other_table(ablated):
    out, _ = ablated
    again = run_evaluation(sources(2), photo_spec(("edit", *ASKED[:1])), out, Told())
    assert again.computed == 0


def test_learning_rates_are_compared_on_the_photos_kept_apart(tmp_path):
    draw = Draw(0, 0, 2, types=("hazy",))
    kept_apart = photo_spec(("edit", "rate-2"), on_validation=True, draw=draw)
    evaluation = run_evaluation(sources(6), kept_apart, tmp_path, Told())
    compared = run_evaluation(
        sources(6), photo_spec(("auto-contrast",), draw=replace(draw, num_dulled=9)),
        tmp_path, Told(),
    )  # fmt: skip
    assert not set(names(evaluation.cases)) & set(names(compared.cases))
    *_, choice = photo_tuning_tables(evaluation)
    rates = [value["learning_rate"] for value in choice.values]
    assert sorted(rates) == [1.0, 2.0]
    means = [value["mean"] for value in choice.values]
    assert means == sorted(means, reverse=True)
    assert f"optimiser.learning_rate={rates[0]:g}" in choice.caption


def test_ablations_of_generation_are_of_the_same_seeds_as_the_preset(tmp_path):
    torch.set_num_threads(1)
    methods = ("original", "doodl", "unet-zero", "optimise-at-5", "belm")
    config = guided_spec().config
    config = replace(config, sampler=replace(config.sampler, num_inference_steps=8))
    some = replace(guided_spec(validation=0), config=config, methods=methods)
    evaluation = run_guided(some, tmp_path, Told())
    assert [row["error"] for row in evaluation.rows if row["error"]] == []
    (table,) = guided_ablation_tables(evaluation)
    values = {value["method"]: value for value in table.values}
    assert list(values) == list(methods)
    rows = {(row["method"], row["case"]): row["aim:pocket-judge"] for row in evaluation.rows}
    cases = [draw.case for draw in some.draws()]
    less = sum(rows["belm", case] - rows["doodl", case] for case in cases) / len(cases)
    assert values["belm"]["less:aim:pocket-judge"]["mean"] == pytest.approx(less)
    calls = {name: value["unet_calls"]["mean"] for name, value in values.items()}
    assert calls["unet-zero"] == 0
    assert calls["belm"] < 0.7 * calls["doodl"]
    assert calls["optimise-at-5"] < calls["doodl"]
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    assert columns["sampler"] == ("edict", "edict", "edict", "edict", "belm")


def test_learning_rates_of_generation_are_compared_on_other_seeds(tmp_path):
    torch.set_num_threads(1)
    methods = ("original", "doodl", RATES[0])
    some = guided_spec(methods=methods, validation=2, on_validation=True)
    evaluation = run_guided(some, tmp_path, Told())
    tested = {draw.case for draw in replace(some, on_validation=False, seeds=50).draws()}
    assert not tested & {row["case"] for row in evaluation.rows}
    *_, choice = guided_tuning_tables(evaluation)
    assert sorted(value["learning_rate"] for value in choice.values) == [0.25, 1.0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_ablation_of_photos_runs(tmp_path):
    torch.set_num_threads(1)
    spec = photo_spec(("edit",), draw=Draw(1, 0, 0, types=("hazy",)))
    spec = replace(spec, methods=("edit", *acting("photo", spec.config).names))
    rows = run_evaluation(sources(1), spec, tmp_path, Told()).rows
    assert {row["method"]: row["error"] for row in rows} == dict.fromkeys(spec.methods)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_ablation_of_generation_runs(tmp_path):
    torch.set_num_threads(1)
    config = preset("pocket-text")
    sampler, optimiser = config.sampler, config.optimiser
    config = replace(
        config,
        sampler=replace(sampler, guidance_scale=1.0),
        optimiser=replace(optimiser, num_optim_steps=1),
    )
    spec = guided_spec(items=ITEMS[:1], validation=0)
    spec = replace(spec, config=config, methods=("doodl", *acting("generation", config).names))
    rows = run_guided(spec, tmp_path, Told()).rows
    assert {row["method"]: row["error"] for row in rows} == dict.fromkeys(spec.methods)
