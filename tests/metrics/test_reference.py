"""Files of reference statistics: ours, the family's, and those of something else."""

import json

import numpy as np
import pytest
import torch
from made_references import made_reference, small_network

import utils
from metrics import functional
from metrics import reference as references
from metrics.reference import (
    Reference,
    ReferenceProtocol,
    export,
    load_reference,
    merge,
    random_features,
    read_reference,
    reference_path,
)


def test_reference_round_trip(tmp_path):
    network = small_network()
    reference = made_reference(network)
    path = reference_path(tmp_path, "toy", network.name, network.resize)
    assert path.name == "toy_classifier_native_reference.npz"
    reference.save(path)
    loaded = load_reference(path, network)
    for key, value in vars(reference).items():
        same = getattr(loaded, key)
        assert torch.equal(same, value) and same.dtype == value.dtype if torch.is_tensor(value) else same == value
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reference_of_something_else_is_refused(tmp_path):
    network = small_network()
    path = reference_path(tmp_path, "toy", network.name, network.resize)
    with pytest.raises(utils.UserError, match=r"no reference statistics .*toy.* --dataset toy .*classifier"):
        load_reference(path, network)
    made_reference(network).save(path)
    with pytest.raises(utils.UserError, match="other classifier weights"):
        load_reference(path, small_network(hash_="b" * 64))
    with pytest.raises(utils.UserError, match="--feature_network classifier"):
        load_reference(path, small_network("inception"))
    other_rule = small_network()
    other_rule.resize = "tf1"
    with pytest.raises(utils.UserError, match="--resize native"):
        load_reference(path, other_rule)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(utils.UserError, match="not a readable npz"):
        load_reference(path, network)
    np.savez(path, reference=json.dumps({}))
    with pytest.raises(utils.UserError, match="make it again"):
        load_reference(path, network)


# `strip("_hdf5")` would eat letters of these names
@pytest.mark.parametrize("dataset, family", [("faded5", "faded5"), ("ILSVRC64", "I64")])
def test_files_of_the_family_load(tmp_path, capsys, dataset, family):
    network = small_network("inception")
    made = made_reference(network)
    np.savez(tmp_path / f"{family}_inception_moments.npz", mu=made.mu.numpy(), sigma=made.sigma.numpy())
    path = reference_path(tmp_path, dataset, network.name, network.resize)
    reference = load_reference(path, network)
    printed = capsys.readouterr().out
    assert reference.real_features is None and reference.protocol.assumed
    assert printed.count("assumed") == 1 and "no KID" in printed
    np.savez(tmp_path / f"{family}_inception_activations.npz", real_features=made.real_features.numpy())
    for source in (path, tmp_path / f"{family}_inception_moments.npz"):
        reference = load_reference(source, network)
        assert torch.equal(reference.mu, made.mu) and torch.equal(reference.real_features, made.real_features)
        assert capsys.readouterr().out.count("assumed") == 1
    with pytest.raises(utils.UserError, match="does not hold"):
        load_reference(tmp_path / f"{family}_inception_activations.npz", network)
    with pytest.raises(utils.UserError, match="no reference statistics"):
        load_reference(tmp_path / f"{dataset}_classifier_native_reference.npz", small_network())


def part_of(network, features, name="toy", num_kept=None, **protocol):
    """A Reference of some of the features of a whole."""
    n = len(features)
    about = {"dataset": name, "num_images": n, "seed": 0, "k": 5, "splits": 10} | protocol
    kept = features[torch.from_numpy(random_features(n, 0))][:num_kept]
    moments = functional.moments_of(features).finalize()
    return Reference(*moments, kept, 2.0, 0.1, 0.9, ReferenceProtocol.of(network, **about))


def test_merged_parts_are_the_whole(monkeypatch):
    monkeypatch.setattr(references, "NUM_REAL_FEATURES", 60)
    network = small_network()
    features = torch.randn(150, network.feature_dim, generator=torch.Generator().manual_seed(0))
    features[:, 0] = torch.arange(150)  # tells the images apart
    whole = functional.moments_of(features).finalize()
    parts = [part_of(network, part, name) for name, part in zip("abc", features.split([90, 40, 20]), strict=True)]
    merged = merge(parts, "all", seed=3)
    for ours, expected in zip((merged.mu, merged.sigma), whole, strict=True):
        assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert merged.protocol.dataset == "all" and merged.protocol.num_images == 150
    assert merged.is_mean is merged.coverage_ceiling is None and merged.protocol.seed == 3
    images = merged.real_features[:, 0].long()
    assert len(images.unique()) == 60 and torch.equal(features[images], merged.real_features)
    origin = np.digitize(images, [90, 130])
    assert (np.bincount(origin) > 5).all() and (np.diff(origin) < 0).any()  # all parts, mixed
    few = merge([parts[0], Reference(*whole, None, None, None, None, parts[1].protocol)], "all")
    assert few.real_features is None


def test_unlike_parts_are_not_merged():
    network = small_network()
    features = torch.randn(40, network.feature_dim)
    one = part_of(network, features, "one")
    for other, line in (
        (part_of(small_network(hash_="b" * 64), features, "two"), "another weights_hash .* one aaaa.*, two bbbb"),
        (part_of(network, features, "two", k=3), "another k "),
        (part_of(network, features, "two", num_images=None), "two: the number of its images is not known"),
        (part_of(network, 2 * features, "two", num_kept=10), "part 2 holds 10 real features, 40 are needed"),
        (part_of(network, features, "two"), "one and two share images"),
        (part_of(network, 2 * features, "one", reference_num=40), "one and one share images"),
    ):
        with pytest.raises(utils.UserError, match=line):
            merge([one, other], "all")


def test_exported_files_load_elsewhere_and_here(tmp_path, capsys):
    network = small_network("inception")
    made = made_reference(network)
    plain = tmp_path / "for_pytorch_fid.npz"
    assert export(made, plain) == [plain]
    with np.load(plain) as file:  # as pytorch-fid does
        assert file.files == ["mu", "sigma"] and file["mu"].dtype == np.float64
        assert np.array_equal(file["sigma"], made.sigma.numpy())
    loaded = load_reference(plain, network)
    assert torch.equal(loaded.sigma, made.sigma) and loaded.real_features is None and loaded.protocol.assumed
    family = export(made, tmp_path / "I64_inception_moments.npz")
    assert [path.name for path in family] == ["I64_inception_moments.npz", "I64_inception_activations.npz"]
    loaded = load_reference(family[0], network)
    assert torch.equal(loaded.real_features, made.real_features) and loaded.protocol.dataset == "I64"
    with pytest.raises(utils.UserError, match="which classifier"):
        load_reference(plain, small_network())
    with pytest.raises(utils.UserError, match=r"exported as \.npz"):
        export(made, tmp_path / "moments.pt")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_subset_has_a_file_of_its_own(tmp_path):
    network = small_network()
    path = reference_path(tmp_path, "toy", network.name, network.resize, 50)
    assert path.name == "toy_classifier_native_num50_reference.npz"
    with pytest.raises(utils.UserError, match=r"--dataset toy .*--feature_network classifier --reference_num 50$"):
        load_reference(path, network)


def test_files_of_earlier_versions_load(tmp_path):
    network = small_network()
    made = made_reference(network)
    protocol = made.protocol.to_dict()
    for key in ("is_outputs", "reference_num", "imagenet_classes", "selection"):
        del protocol[key]
    about = {"is_mean": 2.5, "is_std": 0.1, "coverage_ceiling": 0.9, "protocol": protocol}
    np.savez(tmp_path / "old.npz", mu=made.mu, sigma=made.sigma, reference=json.dumps(about))
    loaded = load_reference(tmp_path / "old.npz", network)
    assert loaded.protocol.is_outputs == "all" and loaded.protocol.reference_num is None


def test_files_that_are_no_statistics(tmp_path):
    network = small_network("inception")
    path = tmp_path / "some.npz"
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(utils.UserError, match="not a readable npz"):
        load_reference(path, network)
    np.savez_compressed(path, mu=np.random.default_rng(0).normal(size=5000))
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(utils.UserError, match="not a readable npz"):
        load_reference(path, network)
    d = network.feature_dim
    text = {"mu": np.full(d, "0.5"), "sigma": np.full((d, d), "0.5")}
    for arrays in ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, text):
        np.savez(path, **arrays)
        with pytest.raises(utils.UserError, match="does not hold `mu`"):
            load_reference(path, network)
    with pytest.raises(utils.UserError, match="not a readable npz"):
        load_reference(tmp_path, network)
    with pytest.raises(utils.UserError, match="no such file"):
        read_reference(tmp_path / "missing.npz")
