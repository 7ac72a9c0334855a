"""`structseg fetch CONFIG`: downloads what a fit would, so that it can run where there is no network."""

from __future__ import annotations

from structseg.options.arguments import check_data, parse_tool
from structseg.options.plain_parser import PlainParser


def make_parser() -> PlainParser:
    """The options of `structseg fetch`."""
    parser = PlainParser(
        "fetch",
        ("consensus/lfw_parts --data.root LFW", "fasseg_v2 --data.root FASSEG --data.download true"),
        usage="%(prog)s CONFIG [options of structseg fit ...]",
        description="Downloads the pre-trained weights of a configuration, and its data with --data.download true,\n"
        "so that the fit runs on a node without a network. The caches are those of HF_HOME and TORCH_HOME.",
    )
    parser.add_argument("config", metavar="CONFIG", help="an experiment, by path or name")
    return parser


def main(args: list[str]) -> None:
    """Makes the model and prepares the data as `fit` would, and prints where the weights came from.

    Raises:
        FileNotFoundError: no such configuration, no data, or weights that cannot be downloaded.
        ValueError: options that are refused.
    """
    _, options = parse_tool(make_parser(), args)
    check_data(options)
    from structseg.command.configs import make_model_and_data  # takes seconds to load

    model, data = make_model_and_data(options)
    data.prepare_data()
    from huggingface_hub.constants import HF_HOME
    from torch.hub import get_dir

    print(f"initial weights: {model.initial_weights}")
    print(f"caches: {HF_HOME} and {get_dir()}; a node without a network needs them by HF_HOME and TORCH_HOME")
