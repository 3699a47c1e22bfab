"""Steps with techniques, on a rank of several or alone: what test_regularisation.py compares."""

import itertools

import torch
from whole_steps import networks

import utils
from torch_utils.distributed import Ranks, data_parallel, mean_over_ranks
from training.batch_statistics import BatchStatistics
from training.batches import Batches
from training.optimizers import OptimizerOptions, make_optimizers
from training.options import TrainOptions
from training.regularisation import Regularisation
from training.steps import d_step, g_step

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
BATCH = 8
D2DCE = ["--D_aux", "d2dce", "--D_embed_dim", "5", "--D_cond", "none"]
ADA = ["--ada_target", "0.6", "--ada_kimg", "0.3"]


def options_of(*flags):
    parser = utils.ArgumentParser()
    TrainOptions.add_to(parser)
    defaults, given = parser.parse_layers(["--dataset", "x", "--batch_size", str(BATCH), *flags])
    return TrainOptions.of(defaults | given)


def pair(options, **model):
    """G and D of float64, with the flags' auxiliary classifier."""
    of_flags = {name: options.model[name] for name in ("D_aux", "D_embed_dim", "D_cond")}
    return networks(**of_flags, **model)


RUNS = {
    "relativistic": ["--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1", "--r1_every", "2"],
    "approximated, cr, zcr, lecam": "--r1_gamma 1 --r1_approx --cr 10 --zcr 20 --lecam 0.3 --lecam_start 1".split(),
    "ada, bcr": [*ADA, "--bcr", "10"],
    "diffaug, d2dce": ["--diffaug", "color_translation_cutout", *D2DCE],
}


def trained(name, steps, ranks):
    """Weights, losses and memory after steps on this rank's slices, in float64, with batch norm over all ranks."""
    options = options_of(*RUNS[name], "--num_D_accumulations", "2")
    G, D = pair(options)
    BatchStatistics(True, 0).apply(G, ranks)
    opt_G, opt_D = make_optimizers(G, D, OptimizerOptions())
    forward_G, forward_D = (data_parallel(network, ranks) for network in (G, D))
    memory = Regularisation(options.techniques, CPU)
    memory.strength.fill_(0.5)
    pixels = torch.randint(0, 256, (99, BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    loader = ((ranks.slice(images), ranks.slice(torch.arange(BATCH) % 3)) for images in pixels)
    batches = Batches(options.batches, G.config, None, 0, ranks, loader, 0, True, options.steps.paired)

    def doubled(passes):
        for one in passes:
            yield [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in one]

    results = {}
    for step in range(1, steps + 1):
        draws = itertools.count()
        for _ in range(2):
            passes = doubled(batches.D_passes(step, itertools.islice(draws, 2)))
            terms = d_step(G, D, forward_D, opt_D, passes, *options.steps.of_D, None, memory)
        passes = doubled(batches.G_passes(step, itertools.islice(draws, 1)))
        terms |= g_step(G, D, forward_G, opt_G, passes, *options.steps.of_G, None, memory)
        means = mean_over_ranks({key: value.double() for key, value in terms.items()}, ranks)
        results |= {f"{step} {key}": torch.tensor(value) for key, value in means.items()}
    state = {f"{i}.{key}": t for i, net in enumerate((G, D)) for key, t in net.state_dict().items()}
    return results | state | {"averages": memory.averages, "strength": memory.strength}


def trained_as_rank(rank, world_size, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, CPU)
    torch.save({name: trained(name, 2, ranks) for name in RUNS}, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()
