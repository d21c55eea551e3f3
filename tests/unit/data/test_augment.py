"""Augmentation of a batch."""

from __future__ import annotations

import torch

from nasvit.data import augment
from nasvit.data.augment import Normaliser, light_batch


def plain(channels: int = 1) -> Normaliser:
    """Leaves values on the 0..1 scale."""
    return Normaliser.of((0.0,) * channels, (1.0,) * channels, device="cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    scaled = images.double() / 255
    normalise = Normaliser.of(tuple(scaled.mean(dim=(0, 2, 3)).tolist()), tuple(scaled.std(dim=(0, 2, 3)).tolist()), device="cpu")
    x = normalise(images)
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-4 and (x.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_without_shift_and_jitter_the_picked_images_come_out_as_they_are(monkeypatch) -> None:
    monkeypatch.setattr(augment, "JITTER", 0.0)
    monkeypatch.setattr(augment, "_window", lambda chance, side: torch.arange(side).repeat(len(chance), 1))
    images = torch.randint(0, 256, (9, 3, 8, 6), dtype=torch.uint8)
    index = torch.tensor([4, 0, 4])
    x = light_batch(images, index, plain(3), flip=False, share=1.0, generator=generator())
    assert torch.allclose(x, images[index] / 255, atol=1e-6) and x.is_contiguous()


def test_mirrored_images_appear_only_when_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(augment, "JITTER", 0.0)
    ramp = torch.arange(16, dtype=torch.uint8).mul(10).expand(64, 1, 16, 16)
    both = [light_batch(ramp, torch.arange(64), plain(), flip=flip, share=1.0, generator=generator()) for flip in (False, True)]
    rising = [x[:, 0, 8, 4:12].diff(dim=1).mean(dim=1) > 0 for x in both]
    assert bool(rising[0].all()) and 16 < int(rising[1].sum()) < 48


def test_a_shift_stays_within_its_reach_and_reflects_the_border() -> None:
    rows = augment._window(torch.linspace(0, 0.999, 500).view(-1, 1), 32)
    reach = round(32 * augment.SHIFT)
    assert int(rows.min()) == 0 and int(rows.max()) == 31
    assert {int(row[16]) - 16 for row in rows} == set(range(-reach, reach + 1))
    assert rows[0, : reach + 1].tolist() == list(range(reach, -1, -1))


def test_jitter_is_one_brightness_and_contrast_per_image_not_per_pixel() -> None:
    flat = torch.full((40, 3, 8, 8), 100, dtype=torch.uint8)
    x = light_batch(flat, torch.arange(40), plain(3), flip=True, share=1.0, generator=generator()) * 255
    assert x.flatten(1).std(dim=1).max() < 1e-3
    means = x.mean(dim=(1, 2, 3))
    low, high = 100 * (1 - augment.JITTER), 100 * (1 + augment.JITTER)
    assert means.min() >= low - 0.01 and means.max() <= high + 0.01 and means.std() > 1


def test_all_chance_comes_from_the_generator() -> None:
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    first, again, other = (light_batch(images, torch.arange(9), plain(3), flip=True, share=1.0, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_image_of_one_pixel_survives() -> None:
    x = light_batch(torch.full((2, 1, 1, 1), 7, dtype=torch.uint8), torch.arange(2), plain(), flip=True, share=1.0, generator=generator())
    assert x.shape == (2, 1, 1, 1) and bool(x.isfinite().all())


def test_only_the_share_asked_for_is_augmented() -> None:
    images = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)
    changed = [(light_batch(images, torch.arange(400), plain(), flip=True, share=share, generator=generator()) - images / 255)
               .abs().amax(dim=(1, 2, 3)).gt(1e-5).double().mean().item() for share in (0.0, 0.3, 1.0)]
    assert changed[0] == 0 and abs(changed[1] - 0.3) < 0.1 and changed[2] > 0.95
