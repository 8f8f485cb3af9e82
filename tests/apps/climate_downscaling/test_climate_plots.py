"""Figures: drawn, not blank, at the right aspect, comparable panels on one scale."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from apps.climate_downscaling import maps, plots
from apps.climate_downscaling.data import open_field, sample_path
from apps.climate_downscaling.diagnostics import Diagnostics
from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.plots import draw_downscaled, draw_verification
from apps.climate_downscaling.sphere import unrotate

TAS = Variable("tas", "K")
PR = Variable("pr", "mm day-1")
FINE = Grid(58 - 0.25 * np.arange(16), -10 + 0.25 * np.arange(24))


def draw(path, *, truth=True, members=5, variable=TAS, grid=FINE, **options):
    """A small figure; returns the figure object that was saved."""
    rng = np.random.default_rng(0)
    fields = rng.gamma(1.0, 2.0, (members + 1, *grid.shape)) + 280 * (variable is TAS)
    coarse = fields[0].reshape(grid.shape[0] // 4, 4, -1, 4).mean((1, 3))
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        save = lambda figure, target: kept.append(figure) or maps.save(figure, target)  # noqa: E731
        patch.setattr(plots, "save", save)
        draw_downscaled(
            path,
            coarse=coarse,
            members=fields[1:],
            truth=fields[0] if truth else None,
            coarse_grid=grid.coarsen(4),
            fine_grid=grid,
            variable=variable,
            time="2019-03-28 12:00",
            **options,
        )
    return kept[0]


def images(figure: Figure):
    """Title of the panel -> its image."""
    return {axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}


def texts(figure: Figure):
    return [text.get_text() for text in figure.texts]


def test_the_file_is_a_png_with_something_on_it(tmp_path):
    figure = draw(tmp_path / "out.png", ood=0.5)
    assert (tmp_path / "out.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    pixels = imread(tmp_path / "out.png")[..., :3]
    wide, high = (round(side * figure.dpi) for side in figure.get_size_inches())
    assert abs(pixels.shape[0] - high) <= 1
    assert abs(pixels.shape[1] - wide) <= 1
    assert min(pixels.shape[:2]) > 500
    white = (pixels > 0.99).all(-1).mean()
    assert 0.1 < white < 0.6  # margins and panels
    assert len(np.unique((pixels * 255).astype("u1").reshape(-1, 3), axis=0)) > 500
    # the corners are margin: nothing is cut off
    assert (pixels[:8] > 0.99).all()
    assert (pixels[-8:] > 0.99).all()
    assert (pixels[:, :8] > 0.99).all()


@pytest.mark.parametrize(
    ("truth", "members", "wanted"),
    [
        (True, 5, ["coarse input (4 × 6 cells)", "mean of 5 members", "truth", "member 1"]),
        (False, 5, ["coarse input (4 × 6 cells)", "mean of 5 members", "member 3", "member 1"]),
        (True, 1, ["coarse input (4 × 6 cells)", "member 1", "truth"]),
        (False, 1, ["coarse input (4 × 6 cells)", "member 1"]),
        (False, 2, ["coarse input (4 × 6 cells)", "mean of 2 members", "member 1", "member 2"]),
    ],
)
def test_panels_share_one_scale_and_spread_has_its_own(tmp_path, truth, members, wanted):
    shown = images(draw(tmp_path / "out.png", truth=truth, members=members))
    assert set(wanted) <= set(shown)
    spread = [t for t in shown if t.startswith("spread")]
    assert len(spread) == (members > 1)
    fields = [image for title, image in shown.items() if title not in spread]
    assert len({image.get_clim() for image in fields}) == 1
    assert len({image.get_cmap().name for image in fields}) == 1
    for title in spread:
        assert shown[title].get_clim() != fields[0].get_clim()
        assert shown[title].get_clim()[0] == 0


def test_what_is_drawn_is_what_was_given(tmp_path):
    shown = images(draw(tmp_path / "out.png"))
    rng = np.random.default_rng(0)
    fields = rng.gamma(1.0, 2.0, (6, *FINE.shape)) + 280
    # rows run north to south in the grid and upwards in the image
    np.testing.assert_allclose(shown["truth"].get_array(), fields[0][::-1])
    np.testing.assert_allclose(shown["member 2"].get_array(), fields[2][::-1])
    np.testing.assert_allclose(shown["mean of 5 members"].get_array(), fields[1:].mean(0)[::-1])
    spread = shown["spread (standard deviation)"].get_array()
    np.testing.assert_allclose(spread, fields[1:].std(0, ddof=1)[::-1])


def test_maps_have_the_shape_of_the_earth(tmp_path):
    figure = draw(tmp_path / "out.png")
    axes = next(a for a in figure.axes if a.images)
    box = axes.get_window_extent()
    south, north = axes.get_ylim()
    west, east = axes.get_xlim()
    assert (south, north, west, east) == (54.125, 58.125, -10.125, -4.125)
    scale = np.cos(np.deg2rad((FINE.y[0] + FINE.y[-1]) / 2))
    assert box.height / box.width == pytest.approx((north - south) / ((east - west) * scale), 0.02)


def test_nothing_overlaps(tmp_path):
    figure = draw(tmp_path / "out.png", ood=3.2)
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            # tick labels of one panel may stand in the gap to the next, by no more than it
            apart = one.shrunk_to_aspect(one.height / one.width).padded(-4)
            assert not apart.overlaps(other.padded(-4))


def test_the_title_names_variable_time_and_novelty(tmp_path):
    known = texts(draw(tmp_path / "a.png", ood=0.93))
    assert "Near-surface air temperature (tas), 2019-03-28 12:00" in known
    assert "out-of-distribution score 0.93" in known
    strange = texts(draw(tmp_path / "b.png", ood=3.2))
    assert any("3.20" in text and "unlike the training data" in text for text in strange)
    assert not any("score" in text for text in texts(draw(tmp_path / "c.png")))


def test_colour_bars_carry_units_and_fit_the_variable(tmp_path):
    warm, wet = draw(tmp_path / "a.png"), draw(tmp_path / "b.png", variable=PR)
    labels = [[axes.get_xlabel() for axes in figure.axes] for figure in (warm, wet)]
    assert "tas (K)" in labels[0]
    assert "spread (K)" in labels[0]
    assert "pr (mm/day)" in labels[1]
    assert images(wet)["truth"].get_clim()[0] == 0  # no rain has the colour of no rain
    assert images(wet)["truth"].get_cmap().name != images(warm)["truth"].get_cmap().name


def test_missing_cells_are_grey(tmp_path):
    values = np.full(FINE.shape, 1.0)
    values[:, :12] = np.nan
    figure = maps.new_figure((3, 3))
    maps.draw_map(
        figure.add_axes((0, 0, 1, 1)),
        values,
        FINE,
        norm=maps.positive_scale(values),
        cmap="viridis",
    )
    maps.save(figure, tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")[..., :3]
    middle = pixels[pixels.shape[0] // 2]
    np.testing.assert_allclose(middle[len(middle) // 4], float(maps.MISSING), atol=0.01)
    assert np.ptp(middle[3 * len(middle) // 4]) > 0.2


def test_rotated_grids_have_true_degrees(tmp_path):
    mapping = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
    y, x = -14 + 0.44 * np.arange(28), -22 + 0.44 * np.arange(24)
    lat, lon = unrotate(y, x, mapping)
    grid = Grid(y, x, "rlat", "rlon", "projected", "degrees", lat, lon, mapping)
    # this panel stands in the corner and has labels on both sides
    axes = images(draw(tmp_path / "out.png", grid=grid))["member 1"].axes
    (left, _), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        true = unrotate(np.array([place]), np.array([left]), mapping)[0]
        assert f"{true.item():.1f}" == f"{float(label.get_text().rstrip('°N')):.1f}"
    for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        true = unrotate(np.array([bottom]), np.array([place]), mapping)[1]
        assert f"{-true.item():.1f}" == f"{float(label.get_text().rstrip('°W')):.1f}"
    assert min(len(axes.get_yticks()), len(axes.get_xticks())) >= 2


def test_no_global_state_is_left(tmp_path):
    before = dict(matplotlib.rcParams)
    draw(tmp_path / "out.png")
    assert dict(matplotlib.rcParams) == before


def diagnose(members, truth):
    found = Diagnostics()
    for start in range(0, truth.shape[0], 16):
        piece = slice(start, start + 16)
        keys = range(truth.shape[0])[piece]
        found.add(members[:, piece], truth[piece], keys)
    return found.result()


@pytest.mark.parametrize("members", [8, 1])
def test_verification_is_drawn(tmp_path, members):
    draws = torch.randn(members + 1, 40, 16, 24, generator=torch.Generator().manual_seed(0))
    draws[:, :, :, :4] = torch.nan
    (path,) = draw_verification(tmp_path, diagnose(draws[1:], draws[0]), FINE, TAS)
    assert path.name == "verification_tas.png"
    pixels = imread(path)[..., :3]
    assert pixels.shape[1] == round(9.6 * 160)
    assert 0.3 < (pixels > 0.99).all(-1).mean() < 0.85
    assert (pixels[:, :4] > 0.99).all()


def test_the_sample_is_drawn_in_its_own_colours(tmp_path):
    field = open_field(sample_path()).isel(time=slice(0, 3))
    values = field.read()[:, 0]
    coarse = field.coarsen(4)
    draw_downscaled(
        tmp_path / "a.png",
        coarse=coarse.read(0, 1)[0, 0],
        members=values,
        truth=None,
        coarse_grid=coarse.grid,
        fine_grid=field.grid,
        variable=field.variables[0],
        time="2019-03-01 00:00",
    )
    pixels = imread(tmp_path / "a.png")[..., :3]
    red = (pixels[..., 0] > pixels[..., 2] + 0.2).mean()
    blue = (pixels[..., 2] > pixels[..., 0] + 0.2).mean()
    assert red > 0.05  # the Atlantic
    assert blue > 0.02  # the Highlands
