"""The pixels of a server are those of training, over all kinds of files; what cannot be alike is flagged."""

import numpy as np
import pytest
import tensorflow as tf

from export.servable.decode import decode_batch
from piggyback_tf.data import BrokenImageError, decode_image
from tests import image_files as made
from tests.odd_image_files import odd_pngs, other_files

PROFILED = made.profiled_files()
# Each kind, and whether a server must answer.
FILES = {
    **{name: (file, True) for name, file in (made.pngs() | made.jpegs() | made.turned_files()).items()},
    **{name: (file, True) for name, file in made.cmyk_jpegs().items()},
    **{name: (file, not refused) for name, (file, refused) in PROFILED.items()},
    **{name: (made.File(data), False) for name, data in other_files().items()},
}


@pytest.fixture(scope="module", name="decoded")
def _decoded():
    """The pixels of all files, and which are good, from one call of one graph."""
    odd = odd_pngs()
    contents = [file.data for file, _ in FILES.values()] + list(odd.values())

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(files):
        return decode_batch(files, tf.zeros(tf.shape(files), tf.int32), ("",), (made.SIZE, made.SIZE))

    images, good = decode(tf.constant(contents))
    return dict(zip([*FILES, *odd], zip(images.numpy(), good.numpy().tolist(), strict=True), strict=True))


def test_every_file_of_training_has_the_pixels_that_its_format_defines():
    for name, (file, _) in FILES.items():
        if file.pixels is not None:
            off = np.abs(decode_image(file.data, name).astype(int) - file.pixels).max()
            assert off <= file.tolerance, name


def test_a_server_has_the_pixels_of_training_or_flags_the_file(decoded):
    assert {name: decoded[name][1] for name in FILES} == {name: answered for name, (_, answered) in FILES.items()}
    for name, (file, _) in FILES.items():
        image, good = decoded[name]
        if good:
            off = np.abs(image.astype(int) - decode_image(file.data, name)).max()
            assert off <= ("CMYK" in name), name
        else:
            assert not image.any(), name


def test_pngs_that_programs_read_in_different_ways_have_the_pixels_of_training_or_are_flagged(decoded):
    for name, data in odd_pngs().items():
        image, good = decoded[name]
        try:
            expected = decode_image(data, name)
        except BrokenImageError:
            assert not good, name
            continue
        if good:
            np.testing.assert_array_equal(image, expected, err_msg=name)


def test_a_served_model_answers_to_files_as_the_bank_does_to_their_pixels(small):
    files = {name: file.data for name, (file, _) in FILES.items() if "CMYK" not in name}
    task = small.packs[0].task
    model = tf.saved_model.load(str(small.unpacked))
    found = model.signatures["encoded"](
        image_bytes=tf.constant(list(files.values())), task=tf.constant([task] * len(files))
    )
    good = found["image_ok"].numpy()
    assert dict(zip(files, good.tolist(), strict=True)) == {name: FILES[name][1] for name in files}
    images = np.stack([decode_image(data, name) for name, data in files.items() if FILES[name][1]])
    expected = np.sort(small.bank.predict(images, task=task))[:, ::-1]
    scores = found["scores"].numpy()[good]
    np.testing.assert_allclose(scores[:, : expected.shape[1]], expected[:, : scores.shape[1]], atol=1e-5)
