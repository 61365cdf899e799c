"""What is drawn: disjoint, balanced, permuted, repeatable, and the images that the file holds."""

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.augment import Warp, parts, sample, views, warp
from common.episodes import EpisodeLoader
from common.shards import UsageError
from tests.conftest import write_set

POOLS = (None, (8, 12))


def loader_of(data_dir, split="train", ways=5, shots=2, queries=3, tasks=6, **options):
    return EpisodeLoader(data_dir / "toy" / f"{split}.h5", ways, shots, queries, tasks, **options)


@pytest.mark.parametrize("pool", POOLS)
def test_support_and_query_are_disjoint_and_balanced(data_dir, pool):
    loader = loader_of(data_dir, pool=pool)
    for _ in range(5):
        episode = loader.sample()
        for task in range(6):
            drawn = torch.cat([episode.rows[episode.support[task]], episode.rows[episode.query[task]]])
            assert drawn.unique().numel() == 5 * (2 + 3)
            assert episode.y_support[task].bincount().tolist() == [2] * 5
            assert episode.y_query[task].bincount().tolist() == [3] * 5
            assert episode.classes[task].unique().numel() == 5


@pytest.mark.parametrize("pool", POOLS)
def test_unequal_shots_come_in_pairs_around_their_mean_and_are_each_as_likely(data_dir, toy, pool):
    loader = loader_of(data_dir, shots=3, tasks=400, pool=pool, unequal=True)
    episode = loader.sample()
    assert episode.support.shape == (400, 15) and episode.query.shape == (400, 15)
    counts = F.one_hot(episode.y_support, 5).sum(1)  # (T, N)
    assert counts.min() == 1 and counts.max() == 5
    ordered = counts.sort(1).values
    assert (ordered + ordered.flip(1) == 6).all()
    assert np.abs(counts.flatten().bincount()[[1, 2, 4, 5]].numpy() - 320).max() < 6 * 320**0.5  # a pair has two
    assert (counts.float().mean(0) - 3).abs().max() < 0.4, "a label tells how many shots it has"
    for task in range(20):
        drawn = torch.cat([episode.rows[episode.support[task]], episode.rows[episode.query[task]]])
        assert drawn.unique().numel() == 30 and episode.y_query[task].bincount().tolist() == [3] * 5
    class_of_row = np.searchsorted(toy["start"], episode.rows[episode.support].numpy(), side="right") - 1
    np.testing.assert_array_equal(class_of_row, episode.classes.gather(1, episode.y_support).numpy())


@pytest.mark.parametrize("pool", POOLS)
def test_repeated_images_of_unequal_shots_are_those_that_are_kept_and_leave_no_class_more_than_another(data_dir, pool):
    some = dict(shots=3, tasks=50, pool=pool, unequal=True)
    kept, episode = loader_of(data_dir, **some).sample(), loader_of(data_dir, **some, repeated=True).sample()
    assert episode.support.shape == (50, 25) and torch.equal(episode.rows[episode.query], kept.rows[kept.query])
    for task in range(50):
        for label in range(5):
            few, many = (e.rows[e.support[task][e.y_support[task] == label]].tolist() for e in (kept, episode))
            assert set(few) == set(many) and len(many) == 5, "images of the class, and no others"
            assert max(map(many.count, few)) - min(map(many.count, few)) <= 1
    assert (episode.y_support.sort(1).values != episode.y_support).any(1).all(), "in random order"


def test_one_shot_or_too_few_images_for_unequal_shots_are_refused(data_dir):
    with pytest.raises(UsageError, match="--shots 1: expected 2 or more with --unequal-shots"):
        loader_of(data_dir, shots=1, unequal=True)
    with pytest.raises(UsageError, match=r"--shots 9 \(up to 17 with --unequal-shots\) and --queries 4: class"):
        loader_of(data_dir, shots=9, queries=4, unequal=True)
    loader_of(data_dir, shots=9, queries=3, unequal=True)


@pytest.mark.parametrize("memory", ("device", "mapped"))
@pytest.mark.parametrize("pool", POOLS)
def test_images_and_labels_are_those_of_the_file(data_dir, toy, pool, memory):
    loader = loader_of(data_dir, pool=pool, memory=memory)
    for _ in range(3):
        episode = loader.sample()
        pixels = (episode.images * loader.std + loader.mean).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(pixels, toy["images"][episode.rows.numpy()])
        for x, where, y in (
            (episode.x_support, episode.support, episode.y_support), (episode.x_query, episode.query, episode.y_query)
        ):  # fmt: skip
            class_of_row = np.searchsorted(toy["start"], episode.rows[where].numpy(), side="right") - 1
            np.testing.assert_array_equal(class_of_row, episode.classes.gather(1, y).numpy())
            torch.testing.assert_close(x, episode.images[where])


def test_the_mapped_file_gives_the_same_episodes_as_memory_does(data_dir):
    kept, mapped = (loader_of(data_dir, memory=memory) for memory in ("device", "mapped"))
    for _ in range(4):
        a, b = kept.sample(), mapped.sample()
        assert torch.equal(a.images, b.images) and torch.equal(a.query, b.query) and torch.equal(a.y_query, b.y_query)


@pytest.mark.parametrize("pool", POOLS)
def test_labels_and_order_are_permuted(data_dir, pool):
    """Over many tasks every class takes every label equally often, and so does every place of the support set."""
    loader = loader_of(data_dir, tasks=3000, shots=1, queries=1, pool=pool and (12, 12))
    episode = loader.sample()
    expected = 3000 / 12
    for label in range(5):
        assert np.abs(episode.classes[:, label].bincount(minlength=12).numpy() - expected).max() < 5 * expected**0.5
        assert np.abs(episode.y_support[:, 0].bincount().numpy() - 600).max() < 5 * 600**0.5
    same = (episode.y_support[:, 0] == episode.y_query[:, 0]).float().mean()
    assert abs(same - 0.2) < 0.04, "the order of the support set tells the order of the query set"


def test_every_image_of_a_ragged_class_is_drawn(data_dir, toy):
    loader = loader_of(data_dir, tasks=400)
    rows = torch.cat([loader.sample().rows for _ in range(2)])
    assert rows.unique().numel() == len(toy["images"])


def test_a_pool_holds_each_image_once(data_dir):
    episode = loader_of(data_dir, tasks=50, pool=(8, 12)).sample()
    assert len(episode.images) == 8 * 12 == episode.rows.unique().numel()


def test_seeds_repeat_and_seeds_ranks_and_batches_differ(data_dir):
    first, again, other = (loader_of(data_dir, seed=s) for s in (3, 3, 4))
    ranks = [loader_of(data_dir, seed=3, offset=r, stride=2) for r in (0, 1)]
    a, b, c = first.sample(), again.sample(), other.sample()
    assert torch.equal(a.rows, b.rows) and torch.equal(a.images, b.images) and torch.equal(a.y_query, b.y_query)
    assert not torch.equal(a.rows, c.rows)
    second = first.sample()
    assert not torch.equal(a.rows, second.rows)
    assert torch.equal(ranks[0].sample().rows, a.rows) and torch.equal(ranks[1].sample().rows, second.rows)
    first.rewind()
    assert torch.equal(first.sample().rows, a.rows)


def test_normalised_training_images_have_mean_zero_and_deviation_one(data_dir):
    images = loader_of(data_dir, tasks=400).sample().images
    assert abs(images.mean()) < 0.01 and abs(images.std() - 1) < 0.01


def test_a_mirror_is_a_mirror_and_no_warp_changes_nothing(data_dir):
    plain, flipped = loader_of(data_dir).sample(), loader_of(data_dir, warp=Warp(flip=True)).sample()
    assert torch.equal(plain.rows, flipped.rows)
    mirrored = 0
    for x, y in zip(plain.images, flipped.images):
        is_mirror = torch.allclose(x.flip(-1), y, atol=1e-4)
        assert is_mirror or torch.allclose(x, y, atol=1e-4)
        mirrored += is_mirror
    assert 0.3 < mirrored / len(plain.images) < 0.7


def test_jitter_changes_brightness_contrast_and_saturation_within_its_limit(data_dir):
    """Of an image of coloured stripes: its mean level, the spread of its grey levels, the spread around the grey."""
    x = torch.tensor([1.0, 2.0, 4.0])[:, None, None] * torch.tensor([[1.0, 3.0]])  # (C, H, W)
    y = warp(x.repeat(2000, 1, 1, 1), Warp(jitter=0.4), 1, torch.Generator().manual_seed(0))
    grey = y.mean(1)
    brightness = grey.mean((1, 2)) - x.mean()
    contrast = (grey[:, 0, 1] - grey[:, 0, 0]) / (x.mean(0)[0, 1] - x.mean(0)[0, 0])
    colour = (y[:, 2, 0, 0] - y[:, 0, 0, 0]) / (x[2, 0, 0] - x[0, 0, 0]) / contrast
    for value, middle in ((brightness, 0.0), (contrast, 1.0), (colour, 1.0)):
        assert abs(value.mean() - middle) < 0.03 and 0.37 < (value - middle).abs().max() < 0.4001
    together = torch.corrcoef(torch.stack([brightness, contrast, colour]))
    assert (together - torch.eye(3)).abs().max() < 0.08


@pytest.mark.parametrize("pool", POOLS)
def test_a_class_is_mirrored_as_a_whole(data_dir, pool):
    plain, flipped = (loader_of(data_dir, pool=pool, warp=w).sample() for w in (Warp(), Warp(flip_class=True)))
    assert torch.equal(plain.rows, flipped.rows)
    is_mirror = torch.tensor(
        [torch.allclose(x.flip(-1), y, atol=1e-4) for x, y in zip(plain.images, flipped.images)]
    ).view(-1, pool[1] if pool else 5)
    assert torch.equal(is_mirror.all(1), is_mirror.any(1)) and 0 < is_mirror.float().mean() < 1


def test_a_class_is_turned_as_a_whole(data_dir):
    """The angle is found by comparison with the plain images under all angles: it is one for all images of a class."""
    loader = loader_of(data_dir, shots=1, queries=1, tasks=1, warp=Warp(rotate_class=180.0))
    images = loader.sample().images.view(5, 2, 28, 28)
    loader.rewind()
    loader.warp = Warp()
    plain = loader.sample().images.view(5, 2, 28, 28)
    inside = (torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0)) - 13.5).norm(dim=1).view(28, 28) < 10
    for before, after in zip(plain, images):
        errors = []
        for degrees in range(-180, 180, 2):
            angle = torch.tensor(degrees * np.pi / 180)
            matrix = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle])
            grid = torch.nn.functional.affine_grid(matrix.view(1, 2, 3).expand(2, 2, 3), (2, 1, 28, 28), False)
            turned = torch.nn.functional.grid_sample(before[:, None], grid, align_corners=False)[:, 0]
            errors.append(((turned - after) * inside).square().mean((1, 2)))
        best = torch.stack(errors).argmin(0)
        assert best[0] == best[1] or abs(best[0] - best[1]) == 1
        assert torch.stack(errors).min(0).values.max() < 0.1


def test_a_shift_moves(data_dir):
    plain = loader_of(data_dir).sample().images
    shifted = loader_of(data_dir, warp=Warp(shift=0.2)).sample().images
    assert shifted.shape == plain.shape and (shifted - plain).abs().mean() > 0.1


def test_an_images_views_are_itself_and_fixed_draws_that_no_other_image_moves():
    x = torch.rand(6, 3, 28, 28)
    how = Warp(flip=True, rotate=10.0, zoom=0.2, shift=0.1, jitter=0.3)
    several = views(x, 4, how).view(4, *x.shape)
    assert torch.equal(several[0], x) and len({float(view.sum()) for view in several}) == 4
    torch.testing.assert_close(views(x[[4, 1]], 4, how).view(4, 2, *x.shape[1:]), several[:, [4, 1]])
    more = views(x, 5, how._replace(flip_class=True, rotate_class=90.0)).view(5, *x.shape)
    assert torch.equal(more[:4], several), "what makes another class has no part, nor has the number of views"
    unmirrored = views(x, 4, how._replace(flip=False)).view(4, *x.shape)
    assert [torch.equal(a, b) for a, b in zip(several, unmirrored)] == [True, False, True, False]
    assert torch.equal(several[1::2], unmirrored[1::2].flip(4))
    assert torch.equal(views(x, 2, Warp(flip=True)), torch.cat([x, x.flip(3)])) and views(x, 1, how) is x


def test_parts_are_all_images_in_their_order_fewer_at_a_time_the_more_views_each_has():
    x = torch.rand(700, 1, 28, 28)
    sizes = {n: [len(part) for part in parts(x, n)] for n in (1, 16, 10**6)}
    assert sizes[1] == [334, 334, 32] and sizes[16] == 35 * [20] and sizes[10**6] == 700 * [1]
    assert torch.equal(torch.cat(parts(x, 16)), x)


@pytest.mark.parametrize("memory", ("device", "mapped"))
def test_images_brought_to_another_shape_keep_their_brightness(memory, tmp_path, data_dir):
    """Grey repeated is the same in every channel, and normalised like it; colours become the grey that Pillow makes."""
    write_set(tmp_path, "colours", shape=(3, 28, 28))
    args = dict(ways=3, shots=1, queries=2, tasks=2, memory=memory)
    grey = EpisodeLoader(data_dir / "toy" / "test.h5", **args).sample()
    repeated = EpisodeLoader(data_dir / "toy" / "test.h5", **args, shape=(3, 28, 28)).sample()
    assert torch.equal(repeated.images, grey.images.expand(-1, 3, -1, -1)) and grey.images.std() > 0.5
    mixed = EpisodeLoader(tmp_path / "colours" / "test.h5", **args, shape=(1, 28, 28))
    episode = mixed.sample()
    pixels = (episode.images * mixed.std + mixed.mean).round().byte()
    with h5py.File(tmp_path / "colours" / "test.h5") as file:
        stored = file["images"][:][episode.rows.numpy()]
    by_pillow = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in stored]
    assert np.abs(pixels[:, 0].numpy().astype(int) - np.stack(by_pillow)).max() <= 1
    with pytest.raises(UsageError, match="images of 3 channels, expected 2; only grey and RGB"):
        EpisodeLoader(tmp_path / "colours" / "test.h5", **args, shape=(2, 28, 28))


@pytest.mark.parametrize("memory", ("device", "mapped"))
def test_resized_images_are_averages_of_what_they_cover(data_dir, memory):
    plain = loader_of(data_dir)
    halved = loader_of(data_dir, image_size=14, memory=memory)
    assert halved.image_shape == (1, 14, 14)
    x, y = plain.sample(), halved.sample()
    assert torch.equal(x.rows, y.rows)
    coarse = torch.nn.functional.avg_pool2d(x.images, 2)
    # antialiasing weighs a pixel's neighbours too
    assert y.images.shape == coarse.shape and (y.images - coarse).abs().mean() < 0.25 * coarse.abs().mean()
    smooth = torch.nn.functional.interpolate(x.images, (14, 14), mode="bilinear", antialias=True)
    torch.testing.assert_close(y.images, smooth, rtol=0, atol=0.6 / 255 / float(plain.std) * 255)


def test_halved_images_are_means_of_four_pixels(data_dir):
    plain, halved = loader_of(data_dir), loader_of(data_dir)
    halved.halved = True
    x, y = plain.sample(), halved.sample()
    assert torch.equal(x.rows, y.rows)
    torch.testing.assert_close(y.images, torch.nn.functional.avg_pool2d(x.images, 2))


def test_too_many_ways_and_too_many_images_are_refused(data_dir):
    with pytest.raises(UsageError, match="--ways 13: train of toy has 12 classes"):
        loader_of(data_dir, ways=13)
    with pytest.raises(UsageError, match="--shots 5 and --queries 16: class .* has 20 images"):
        loader_of(data_dir, shots=5, queries=16)


@pytest.mark.parametrize("damage", ("missing", "cut", "text", "no images", "wrong starts", "float images"))
def test_a_file_that_is_not_whole_is_refused_with_the_command_that_builds_it(data_dir, tmp_path, damage):
    path = tmp_path / "toy" / "train.h5"
    path.parent.mkdir()
    content = (data_dir / "toy" / "train.h5").read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif damage != "missing":
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            if damage == "wrong starts":
                file["class_start"][-1] += 1
            else:
                images = file["images"][:]
                del file["images"]
                if damage == "float images":
                    file["images"] = images / 255
    with pytest.raises(UsageError, match="python data_prep/build.py --dataset toy") as refusal:
        EpisodeLoader(path, 5, 1, 1, 1)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", ((4, 1, 28, 28), (3, 3, 20, 32)))
def test_a_clamped_grid_gives_what_border_padding_does(shape):
    """As Metal has no border padding; up to rounding, also far outside and at the corners."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    maps = torch.randn(len(x), 2, 3, generator=generator) * 0.5 + torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    grid = F.affine_grid(maps, shape, align_corners=False)
    assert (grid.abs() > 1.2).any()
    with_border = sample(x, grid, has_border=True)
    torch.testing.assert_close(sample(x, grid, has_border=False), with_border, rtol=0, atol=1e-5)
    assert (F.grid_sample(x, grid, align_corners=False) - with_border).abs().max() > 0.1


def test_a_mapped_file_is_read_without_asking_the_device_for_anything(data_dir):
    """torch's meta device can't be read back: what it is asked for raises."""
    loader = loader_of(data_dir, device="meta", memory="mapped", image_size=20)
    episode = loader.sample()
    assert episode.images.shape == (150, 1, 20, 20) and episode.support.shape == (6, 10)
    assert {x.device.type for x in (episode.images, episode.query, episode.y_query, episode.rows)} == {"meta"}
    on_cpu = loader_of(data_dir, memory="mapped").sample()
    np.testing.assert_array_equal(on_cpu.rows, loader_of(data_dir, memory="device").sample().rows)
