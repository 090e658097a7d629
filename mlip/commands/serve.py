"""`mlip serve`: give energies and forces to an engine such as i-PI through a socket."""

from mlip.data.dataset import read
from mlip.engines.ipi import serve as run_client
from mlip.engines.ipi import what_is_served
from mlip.runtime import use_all_cores


def describe(parser):
    parser.add_argument("model", help="model.safetensors")
    parser.add_argument("start", help="structure with the engine's elements in its order")
    parser.add_argument("--unixsocket", metavar="NAME", help="the engine's, at /tmp/ipi_NAME")
    parser.add_argument("--host", help="of the engine; localhost if only --port is given")
    parser.add_argument("--port", type=int, help="31415 if only --host is given")
    parser.add_argument("--dtype", help="float32 or float64; as trained if not given")
    parser.add_argument(
        "--unfolded", action="store_true", help="compute with the network itself, slower"
    )


def run(arguments):
    use_all_cores()
    structures = read(arguments.start, keys=None)
    if len(structures) > 1:
        raise ValueError(
            f"{arguments.start} holds {len(structures)} frames; give the one that the engine was "
            "started with"
        )
    print(what_is_served(structures[0]), flush=True)
    answers = run_client(
        arguments.model,
        structures[0],
        unixsocket=arguments.unixsocket,
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        folded=not arguments.unfolded,
    )
    print(f"the engine ended the conversation after {answers} evaluations")
