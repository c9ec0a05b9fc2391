import numpy as np
import pytest
import torch

from appssl.errors import DataError
from appssl.ops import denoising_autoencoder
from appssl.ops.denoising_autoencoder import (
    DenoisingAutoencoder,
    denoising_loss,
    encode_all,
    fit_autoencoder,
    held_out_loss,
)


def images(num=40, shape=(3, 8, 8), seed=0):
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(seed))


def reader(values):
    return lambda rows: values[torch.from_numpy(rows)]


def network(widths=(4, 6), channels=3):
    torch.manual_seed(0)
    return DenoisingAutoencoder(channels, widths)


def test_loss_equals_the_equation_written_out():
    model, inputs = network().double().eval(), images(3).double()
    noise = 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = model(inputs + noise).detach()
    total = 0.0
    for b in range(3):
        for c in range(3):
            for y in range(8):
                for x in range(8):
                    total += (float(out[b, c, y, x]) - float(inputs[b, c, y, x])) ** 2
    assert float(denoising_loss(model, inputs, noise).detach()) == pytest.approx(total / (3 * 3 * 8 * 8), rel=1e-12)


def test_noise_is_removed_from_the_input_and_not_from_the_target():
    same, noise = torch.nn.Identity(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(denoising_loss(same, images(2), noise), noise.square().mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 13), (4, 4, 4)])
def test_outputs_have_the_shape_of_inputs_and_codes_are_means_over_positions(shape):
    model, inputs = network(channels=shape[0]).eval(), images(2, shape)
    out = model(inputs)
    assert out.shape == inputs.shape
    assert ((out > 0) & (out < 1)).all()
    encoded = model.encode(inputs)
    assert encoded.shape == (2, 6, shape[1] // 4, shape[2] // 4)
    by_hand = torch.stack([torch.stack([channel.sum() / channel.numel() for channel in one]) for one in encoded])
    torch.testing.assert_close(model.codes(inputs), by_hand)


def test_gradients_reach_every_parameter():
    model = network().train()
    denoising_loss(model, images(4), torch.zeros(())).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


HOW = {"widths": (4,), "batch_size": 8, "threads": 1}


def test_the_best_weights_are_kept_and_it_ends_when_patience_is_over(monkeypatch):
    given = iter([0.5, 0.3, 0.4, 0.35, 0.1])
    seen = []

    def losses(model, read, rows):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(given)

    monkeypatch.setattr(denoising_autoencoder, "held_out_loss", losses)
    found = fit_autoencoder(reader(images()), 40, **HOW, epochs=9, patience=2)
    assert found.losses == (0.5, 0.3, 0.4, 0.35)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, seen[1][name])
    assert not torch.equal(seen[1]["last.weight"], seen[3]["last.weight"])


def test_held_out_images_are_not_trained_on():
    read_for_training = []
    values = images()

    def read(rows):
        if torch.is_grad_enabled():
            read_for_training.extend(rows.tolist())
        return values[torch.from_numpy(rows)]

    found = fit_autoencoder(read, 40, **HOW, epochs=1, holdout=0.2)
    held_out = sorted(set(range(40)) - set(read_for_training))
    assert len(held_out) >= 6  # of eight; two images are read for their shape
    other = values.clone()
    other[held_out] = 0.5
    again = fit_autoencoder(reader(other), 40, **HOW, epochs=1, holdout=0.2)
    assert torch.equal(found.model.last.weight, again.model.last.weight)
    assert found.losses != again.losses


def test_it_is_the_same_for_a_seed_and_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = fit_autoencoder(reader(images()), 40, **HOW, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = fit_autoencoder(reader(images()), 40, **HOW, epochs=2)
    assert one.losses == again.losses
    assert torch.equal(one.model.last.weight, again.model.last.weight)
    other = fit_autoencoder(reader(images()), 40, **HOW, epochs=2, seed=1)
    assert not torch.equal(one.model.last.weight, other.model.last.weight)


def test_codes_of_all_do_not_depend_on_blocks_and_leave_threads_alone(monkeypatch):
    model, values = network(), images(21)
    threads = torch.get_num_threads()
    whole = encode_all(model, reader(values), 21, threads=1)
    monkeypatch.setattr(denoising_autoencoder, "_BATCH", 10)  # the last block has one image
    assert encode_all(model, reader(values), 21, threads=1) == pytest.approx(whole, abs=1e-6)
    assert whole.shape == (21, 6)
    assert torch.get_num_threads() == threads
    expected = float(denoising_loss(model.eval(), values, torch.zeros(())).detach())
    assert held_out_loss(model, reader(values), np.arange(21)) == pytest.approx(expected, rel=1e-5)


def test_a_last_batch_of_one_is_left_out():
    assert torch.isfinite(fit_autoencoder(reader(images(10)), 10, **HOW, epochs=1).model.last.weight).all()


def test_what_is_no_image_or_too_small_is_refused():
    with pytest.raises(DataError, match=r"of 2 blocks needs images \(C, H, W\) of 4 pixels or more, got \(3, 2, 8\)"):
        fit_autoencoder(reader(images(5, (3, 2, 8))), 5, widths=(4, 4))
    with pytest.raises(DataError, match="needs three or more images, got 2"):
        fit_autoencoder(reader(images(2)), 2)
