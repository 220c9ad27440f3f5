# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator declares, and every message that needs no node."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, declare, instance

SHA = "ab" * 32


def messages(*instances, **changes):
    _declared, problems = declare(*instances, **changes)
    return [str(problem) for problem in problems]


def only(*instances, **changes):
    """Return the only message."""
    found = messages(*instances, **changes)
    assert len(found) == 1, found
    return found[0]


def test_defaults():
    (parsed,) = accept(instance()).instances
    assert (parsed.head, parsed.workers) == ("node1", ("node2", "node3"))
    assert (parsed.context, parsed.parallel, parsed.batch, parsed.ubatch) == (4096, 1, None, None)
    assert (parsed.port, parsed.rpc_port, parsed.host) == (None, None, "0.0.0.0")
    assert (parsed.cache_type_k, parsed.cache_type_v, parsed.flash_attention) == (None, None, "auto")
    assert (parsed.gpu_layers, parsed.tensor_split, parsed.split_mode) == (None, None, None)
    assert (parsed.alias, parsed.has_api_keys) == ("demo", False)
    assert parsed.model.source.as_dict == {"path": "/srv/models/toy.gguf", "from": "controller"}
    assert parsed.model.source.file == "toy.gguf"


def test_everything_at_once():
    declared = accept(
        instance(
            model={"url": "https://models.example.org/a/b%20c.gguf?x=1", "sha256": SHA.upper(), "name": "b.gguf"},
            nodes=["node2", "node1", "node3"],
            head="node1",
            context=8192,
            parallel=3,
            port=8000,
            rpc_port=50100,
            host="::1",
            api_keys=["first", "second"],
            alias="chat",
            gpu_layers="all",
            tensor_split=[3, 1.5],
            batch=1024,
            ubatch=256,
            cache_type_k="q8_0",
            cache_type_v="q8_0",
            flash_attention=True,  # what YAML makes of a bare on
            threads=8,
            threads_batch=16,
            extra_args=["--temp", 0.6],
            environment={"GGML_RDMA_DEV": "mlx5_0", "N": 1},
        )
    )
    (parsed,) = declared.instances
    assert (parsed.head, parsed.workers, parsed.nodes) == ("node1", ("node2", "node3"), ("node1", "node2", "node3"))
    assert parsed.model.source.as_dict == {"urls": ["https://models.example.org/a/b%20c.gguf?x=1"], "from": "node"}
    source = parsed.model.source
    assert (source.name, source.file, source.checksums) == ("b", "b c.gguf", {"b c.gguf": SHA})
    assert (parsed.flash_attention, parsed.extra_args) == ("on", ("--temp", "0.6"))
    assert parsed.environment == {"GGML_RDMA_DEV": "mlx5_0", "N": "1"}
    assert parsed.tensor_split == (3.0, 1.5)


def test_one_node_needs_no_list():
    (parsed,) = accept(instance(nodes=None), inventory=["only"]).instances
    assert (parsed.head, parsed.workers) == ("only", ())


def test_head_and_workers_instead_of_nodes():
    (parsed,) = accept(instance(nodes=None, head="node2", workers=["node1"])).instances
    assert parsed.nodes == ("node2", "node1")


def test_a_head_alone_names_its_node():
    (parsed,) = accept(instance(nodes=None, head="node2")).instances
    assert (parsed.head, parsed.nodes) == ("node2", ("node2",))


def test_a_device_may_be_left_out_of_the_split():
    assert accept(instance(tensor_split=[0, 1])).instances[0].tensor_split == (0.0, 1.0)


def test_api_keys_are_forgotten():
    declared = accept(instance(api_keys=["s3cret"]))
    assert declared.instances[0].has_api_keys is True
    assert "s3cret" not in repr(declared)


def test_no_instances_is_fine():
    assert accept().instances == ()


# The value that is wrong -> the whole message.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, ".context = 0: must be at least 1 token; write e.g. 4096, or auto"),
        ({"context": -1}, ".context = -1: must be at least 1 token; write e.g. 4096, or auto"),
        ({"context": "4096"}, ".context = 4096: it is text; write the number without quotes, e.g. 4096"),
        ({"context": True}, ".context = true: must be a whole number; write e.g. 4096, or auto"),
        ({"context": 4096.5}, ".context = 4096.5: must be a whole number; write e.g. 4096, or auto"),
        ({"context": 1 << 40}, ".context = 1099511627776: must be at most 134217728 token; write e.g. 4096, or auto"),
        ({"parallel": 0}, ".parallel = 0: must be at least 1 slot; write e.g. 1, or auto"),
        ({"batch": 0}, ".batch = 0: must be at least 1 token; write e.g. 4096, or auto"),
        ({"batch": 2048, "ubatch": 4096}, ".ubatch = 4096: must not be larger than batch (2048)"),
        ({"port": 0}, ".port = 0: must be at least 1; write e.g. 8080"),
        ({"port": 70000}, ".port = 70000: must be at most 65535; write e.g. 8080"),
        ({"rpc_port": "x"}, ".rpc_port = x: must be a whole number; write e.g. 8080"),
        ({"threads": 0}, ".threads = 0: must be at least 1 thread; write e.g. 16"),
        ({"host": "localhost"}, ".host = localhost: must be an IPv4 or IPv6 address, e.g. 0.0.0.0 for all"),
        (
            {"gpu_layers": "some"},
            ".gpu_layers = some: must be a number of layers, or the word all or auto; write e.g. 32",
        ),
        ({"tensor_split": []}, ".tensor_split = []: must be a list of numbers, one a device, e.g. [3, 1]"),
        ({"tensor_split": [0, 0]}, ".tensor_split = [0, 0]: must be a list of numbers, one a device, e.g. [3, 1]"),
        (
            {"tensor_split": [1, True]},
            ".tensor_split = [1, true]: must be a list of numbers, one a device, e.g. [3, 1]",
        ),
        ({"tensor_split": [1, "3"]}, '.tensor_split = [1, "3"]: must be a list of numbers, one a device, e.g. [3, 1]'),
        ({"tensor_split": [1, -1]}, ".tensor_split = [1, -1]: must be a list of numbers, one a device, e.g. [3, 1]"),
        ({"split_mode": "row"}, ".split_mode = row: must be one of layer, none, tensor, or auto"),
        (
            {"split_mode": "tensor"},
            ".split_mode = tensor: workers get whole layers; write layer, or serve it from one node",
        ),
        (
            {"split_mode": "none"},
            ".split_mode = none: workers get whole layers; write layer, or serve it from one node",
        ),
        ({"flash_attention": "yes"}, ".flash_attention = yes: must be one of auto, on, off"),
        (
            {"cache_type_k": "q2_k"},
            ".cache_type_k = q2_k: must be one of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1, or auto",
        ),
        (
            {"cache_type_v": "q8_0", "flash_attention": "off"},
            ".cache_type_v = q8_0: a quantised V cache needs flash attention; set flash_attention to on, or write f16",
        ),
        ({"alias": " "}, '.alias = " ": must be text and not empty'),
        ({"alias": "two\nlines"}, ".alias = two lines: must be one line without control characters"),
        ({"extra_args": "--temp 1"}, '.extra_args = --temp 1: must be a list of words, e.g. ["--temp", "0.6"]'),
        ({"extra_args": [True]}, ".extra_args = [true]: True is no word of a command line; quote it"),
        ({"environment": ["A"]}, '.environment = ["A"]: must be a mapping, e.g. {GGML_RDMA_DEV: mlx5_0}'),
        ({"environment": {"A": True}}, '.environment = {"A": true}: the value of A must be one line of text; quote it'),
        ({"environment": {"A": []}}, '.environment = {"A": []}: the value of A must be one line of text; quote it'),
        ({"environment": {"A B": "1"}}, '.environment = {"A B": "1"}: A B is no name of an environment variable'),
        (
            {"environment": {"A": "1\n2"}},
            '.environment = {"A": "1\\n2"}: the value of A must be one line of text; quote it',
        ),
        ({"nodes": "node1"}, ".nodes = node1: must be a list of nodes, e.g. [node1, node2, node3], or auto"),
        (
            {"nodes": []},
            ".nodes = []: list at least one node, or write auto; known are node1, node2, node3, node4, node5, node6",
        ),
        (
            {"nodes": ["node1", "nod2"]},
            '.nodes = ["node1", "nod2"]: nod2 is no node of the inventory '
            "(node1, node2, node3, node4, node5, node6); did you mean node2?",
        ),
        (
            {"head": "elsewhere"},
            ".head = elsewhere: elsewhere is no node of the inventory (node1, node2, node3, node4, node5, node6)",
        ),
        (
            {"nodes": ["node1", "node2", "node1"]},
            '.nodes = ["node1", "node2", "node1"]: node1 is there twice: a node serves an instance once; list it once',
        ),
        (
            {"nodes": ["node1", "node2"], "workers": ["node1", "node2"]},
            '.workers = ["node1", "node2"]: '
            "node1 is the head, which uses its own devices without a worker; take it out",
        ),
        (
            {"nodes": ["node1", "node2"], "head": "node3"},
            '.nodes = ["node1", "node2"]: node3 serves it but is not among its nodes; add it',
        ),
        (
            {"nodes": ["node1", "node2", "node3"], "workers": ["node2"]},
            '.nodes = ["node1", "node2", "node3"]: node3 is neither head nor worker; add it to workers or take it out',
        ),
    ],
)
def test_wrong_values(change, message):
    assert only(instance(**change)) == "llamacpp_instances[0]" + message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, ".name = (not set): give the instance a name, e.g. qwen3-14b"),
        ("Upper", ".name = Upper: a name has 1 to 32 lower-case letters, digits and hyphens, e.g. qwen3-14b"),
        ("-x", ".name = -x: a name has"),
        ("a" * 33, ".name = aaa"),
        (5, ".name = 5: a name has"),
        # Its head would have the unit of demo's workers.
        ("rpc-demo", ".name = rpc-demo: a name must not begin with rpc-"),
    ],
)
def test_names(name, words):
    assert only(instance(name=name)).startswith("llamacpp_instances[0]" + words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, " = (not set): say where it is, e.g. {path: /srv/models/model.gguf}"),
        ("/srv/m.gguf", " = /srv/m.gguf: say where it is"),
        (
            {},
            ".path = (not set): give path (a file), url or urls (addresses), repo (owner/name on a hub) or quants",
        ),
        ({"path": "m.gguf"}, ".path = m.gguf: must be an absolute path, e.g. /srv/models/model.gguf"),
        (
            {"path": "/m.gguf", "url": "https://h/m.gguf", "sha256": SHA},
            ".url = https://h/m.gguf: give one of path, url, urls, repo, quants, not several",
        ),
        ({"url": "ftp://h/m.gguf", "sha256": SHA}, ".url = ftp://h/m.gguf: must be an http or https address of a file"),
        ({"url": "https://h/m.gguf"}, ".sha256 = (not set): a model from a url needs its sha256"),
        ({"path": "/m.gguf", "sha256": "abc"}, ".sha256 = abc: a sha256 has 64 hexadecimal digits"),
        ({"path": "/m.gguf", "from": "head"}, ".from = head: must be one of controller, node"),
        ({"path": "/m.gguf", "name": "../b"}, ".name = ../b: write letters, digits and . _ + -, in parts joined by /"),
        ({"path": "/m.gguf", "name": "/etc/passwd"}, ".name = /etc/passwd: write letters, digits and"),
        ({"path": "/a:b.gguf"}, ".path = /a:b.gguf: file name 'a:b.gguf': it needs letters, digits, blanks inside"),
        ({"path": "/m.gguf", "shared": True, "from": "controller"}, ".from = controller: a shared path is read on"),
        ({"path": "/home/me/m.gguf", "from": "node"}, ".path = /home/me/m.gguf: services see no home directories"),
        ({"path": "/root/m.gguf", "shared": True}, ".path = /root/m.gguf: services see no home directories"),
        (
            {"path": "/m.gguf.part2of2"},
            ".path = /m.gguf.part2of2: it is not the first piece: name that, m.gguf.part1of2",
        ),
        ({"path": "/m.gguf", "shared": "yes"}, ".shared = yes: write true or false"),
        (
            {"url": "https://h/m.gguf", "sha256": SHA, "shared": True},
            ".shared = true: it belongs to path; leave it",
        ),
        (
            {"urls": "https://h/m.gguf", "sha256": SHA},
            ".urls = https://h/m.gguf: must be a list of",
        ),
        (
            {"urls": ["https://h/m"] * 2, "sha256": SHA},
            '.urls = ["https://h/m", "https://h/m"]: names an address twice; list each once',
        ),
        (
            {"urls": ["https://h/m.gguf.part1of2"], "sha256": SHA},
            ".urls = https://h/m.gguf.part1of2: of m.gguf, piece 2 is missing; list all of them",
        ),
        (
            {"urls": ["https://h/a-00001-of-00002.gguf", "https://h/a-00002-of-00002.gguf"], "sha256": SHA},
            ".sha256 = %s: the model has 2 files; write the sha256 of each, {a-00001-of-00002.gguf: ..., " % SHA[:64],
        ),
        (
            {"url": "https://h/m.gguf", "sha256": {"n.gguf": SHA}},
            ".sha256 = n.gguf: n.gguf is none of its files (m.gguf)",
        ),
        ({"path": "/m.gguf", "pth": 1}, ".pth = (not shown): there is no such key; did you mean path?"),
        ({"repo": "name"}, ".repo = name: write owner and name of the repository, e.g."),
        ({"repo": "owner/name", "sha256": SHA}, ".sha256 = %s: it belongs to path or url" % SHA),
        ({"repo": "owner/name", "quant": 4}, ".quant = 4: write auto, the name of a quantisation, e.g. Q4_K_M"),
        ({"path": "/m.gguf", "quant": "auto"}, ".quant = auto: it belongs to repo or quants; leave it out with path"),
        ({"repo": "owner/name", "quant": "Q8_0", "folder": "x"}, ".folder = x: give one of quant, folder, file, not"),
        ({"repo": "owner/name", "folder": "../x"}, ".folder = ../x: write a folder of the repository, e.g. UD-Q2_K_XL"),
        ({"repo": "owner/name", "file": "/x.gguf"}, ".file = /x.gguf: write a file of the repository or a pattern"),
        (
            {"repo": "owner/name", "beside": [7]},
            ".beside = [7]: must be a list of mmproj, tokenizer,",
        ),
        ({"repo": "../name"}, ".repo = ../name: write letters, digits and"),
        (
            {"repo": "owner/name", "convert": {}, "quant": "Q8_0"},
            ".quant = Q8_0: of a repository that is",
        ),
        (
            {"path": "/m", "convert": {"outtype": "q4"}},
            ".convert.outtype = q4: must be one of f32, f16,",
        ),
        (
            {"path": "/m", "convert": "f16"},
            ".convert = f16: say what it shall become, e.g. {",
        ),
        (
            {"url": "https://h/m", "sha256": SHA, "convert": {}},
            ".convert = {}: it belongs to path or repo; leave",
        ),
        ({"quants": []}, ".quants = []: must be a mapping, e.g. {Q8_0: {path: /srv/models/model-q8_0.gguf}}"),
        ({"quants": {"Q8_0": "/m.gguf"}}, ".quants.Q8_0 = /m.gguf: say where it is, e.g."),
        ({"quants": {"Q8_0": {}}}, ".quants.Q8_0.path = (not set): give path (a file), url or urls (addresses)"),
        ({"quants": {"Q8_0": {"url": "https://h/m.gguf"}}}, ".quants.Q8_0.sha256 = (not set): a model from a url"),
        (
            {"quants": {"Q8_0": {"path": "/m.gguf"}}, "quant": "Q4_0"},
            ".quant = Q4_0: Q4_0 is not among quants (Q8_0)",
        ),
    ],
)
def test_models(model, words):
    assert only(instance(model=model)).startswith("llamacpp_instances[0].model" + words)


def test_unknown_keys_suggest_the_nearest_and_hide_the_value():
    message = only(instance(api_key="s3cret"))
    assert message == "llamacpp_instances[0].api_key = (not shown): there is no such key; did you mean api_keys?"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("s3cret", "s = (not shown): must be a list of at least one key; leave it out to serve without a key"),
        ([], "s = (not shown): must be a list of at least one key"),
        (["good", ""], "s[1] = (not shown): it is empty, which would let everybody in"),
        (["  "], "s[0] = (not shown): it is empty"),
        (["s3cret\nother"], "s[0] = (not shown): a key is one line without spaces around it"),
        ([" s3cret"], "s[0] = (not shown): a key is one line without spaces around it"),
        (["#s3cret"], "s[0] = (not shown): a key must not begin with #"),
        ([5], "s[0] = (not shown): a key is text; quote it"),
    ],
)
def test_api_keys(keys, message):
    found = only(instance(api_keys=keys))
    assert found.startswith("llamacpp_instances[0].api_key" + message)
    assert "s3cret" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "9"], "[0] = -c: leave -c out and set context of the instance instead"),
        (["--temp", "1", "--rpc", "x"], "[2] = --rpc: leave --rpc out and set nodes of the instance instead"),
        (["--ctx_size", "9"], "[0] = --ctx_size: leave --ctx-size out and set context of the instance instead"),
        (["--api-key=s3cret"], "[0] = --api-key: leave --api-key out and set api_keys of the instance instead"),
        (["--fit", "on"], "[0] = --fit: leave --fit out: the plan sets it"),
        (["--metrics"], "[0] = --metrics: leave --metrics out: it is always on"),
    ],
)
def test_arguments_that_contradict_the_plan(words, message):
    assert only(instance(extra_args=words)) == "llamacpp_instances[0].extra_args" + message


def test_environment_that_contradicts_the_plan():
    message = only(instance(environment={"LLAMA_API_KEY": "s3cret"}))
    assert message == (
        "llamacpp_instances[0].environment.LLAMA_API_KEY = (not shown): "
        "leave LLAMA_API_KEY out and set api_keys of the instance instead"
    )


def test_an_instance_is_a_mapping():
    assert only("demo").startswith("llamacpp_instances[0] = demo: an instance is a mapping")


def test_instances_are_a_list():
    assert only(instances={"demo": {}}).startswith('llamacpp_instances = {"demo": {}}: must be a list')


@pytest.mark.parametrize("release", ["", None, 11434, "a b", "../x"])
def test_release(release):
    assert only(release=release).endswith("write a build number, tag or commit of llama.cpp, e.g. b11434")


def test_two_instances_of_one_name():
    message = only(instance(), instance(nodes=["node4"]))
    assert message == "llamacpp_instances[1].name = demo: llamacpp_instances[0] has this name; choose another"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"port": 8080},
            {"port": 8080},
            "[1].port = 8080: llamacpp_instances[0].port uses this port of node1; "
            "choose another, or leave it out to get a free one",
        ),
        (
            {"rpc_port": 50052},
            {"nodes": ["node2"], "port": 50052},
            "[1].port = 50052: llamacpp_instances[0].rpc_port uses this port of node2; "
            "choose another, or leave it out to get a free one",
        ),
        (
            {"rpc_port": 50052},
            {"nodes": ["node4", "node3"], "rpc_port": 50052},
            "[1].rpc_port = 50052: llamacpp_instances[0].rpc_port uses this port of node3; "
            "choose another, or leave it out to get a free one",
        ),
    ],
)
def test_two_instances_on_one_port(first, second, message):
    assert only(instance("a", **first), instance("b", **second)) == "llamacpp_instances" + message


def test_one_port_on_two_nodes_is_fine():
    accept(instance("a", port=8080), instance("b", nodes=["node4"], port=8080))


def test_two_models_of_one_name():
    message = only(instance("a"), instance("b", model={"path": "/other/toy.gguf"}, nodes=["node4"]))
    assert message == (
        "llamacpp_instances[1].model.name = toy: the model of llamacpp_instances[0] is another one and has this name; "
        "give one of them a name"
    )
    accept(instance("a"), instance("b", model={"path": "/other/toy.gguf", "name": "toy-2"}))


def parsed_source(model, **settings):
    """Return the source of the only model."""
    return accept(instance(model=model), settings=settings).instances[0].model.source


def test_the_files_of_a_split_model_lie_beside_each_other():
    names = ["toy-0000%d-of-00002.gguf" % number for number in (1, 2)]
    sums = dict(zip(names, [SHA, SHA.replace("a", "b")]))
    source = parsed_source({"url": "https://h/x/toy-00001-of-00002.gguf?y=1", "sha256": sums})
    assert (source.name, source.file, dict(source.checksums)) == ("toy", names[0], sums)
    assert source.urls == tuple("https://h/x/%s?y=1" % name for name in names)


@pytest.mark.parametrize("sha256", [SHA, {"big.gguf": SHA}])
def test_pieces_become_one_file(sha256):
    urls = ["https://h/big.gguf.part%dof2" % number for number in (1, 2)]
    source = parsed_source({"urls": urls, "sha256": sha256})
    assert (source.name, source.file, source.checksums) == ("big", "big.gguf", {"big.gguf": SHA})
    assert source.urls == tuple(urls)


def test_pieces_on_a_disk_lie_beside_each_other():
    source = parsed_source({"path": "/srv/big.gguf.part1of2"})
    assert (source.name, source.file) == ("big", "big.gguf")
    assert source.as_dict == {
        "path": "/srv/big.gguf.part1of2",
        "pieces": ["big.gguf.part1of2", "big.gguf.part2of2"],
        "from": "controller",
    }


def test_a_path_that_all_nodes_see_needs_no_head():
    (parsed,) = accept(instance(nodes="auto", model={"path": "/nfs/toy.gguf", "shared": True})).instances
    assert parsed.model.source.local and parsed.model.source.as_dict["shared"] is True


def test_a_home_of_the_control_node_is_fine():
    assert parsed_source({"path": "/home/me/m.gguf"}).from_ == "controller"


@pytest.mark.parametrize(("fetcher", "from_"), [("controller", "controller"), ("node2", "node"), ("auto", "node")])
def test_who_fetches_what_does_not_say(fetcher, from_):
    address = {"url": "https://h/m.gguf", "sha256": SHA}
    assert parsed_source(address, models_fetcher=fetcher).from_ == from_
    assert parsed_source(dict(address, **{"from": "node"}), models_fetcher=fetcher).from_ == "node"
    repo = accept(instance(model={"repo": "owner/name"}), settings={"models_fetcher": fetcher}).instances[0].model
    assert repo.from_ == from_


@pytest.mark.parametrize(
    ("model", "name", "file"),
    [
        ({"repo": "owner/name", "convert": {"outtype": "f16"}}, "owner/name/F16", "owner-name-F16.gguf"),
        ({"repo": "owner/name", "convert": {"quant": "q4_k_m"}}, "owner/name/Q4_K_M", "owner-name-Q4_K_M.gguf"),
        ({"path": "/srv/MiniLM/", "convert": {}}, "MiniLM/AUTO", "MiniLM-AUTO.gguf"),
        ({"path": "/srv/MiniLM", "name": "embed", "convert": {}}, "embed", "embed.gguf"),
    ],
)
def test_what_a_conversion_makes_has_a_name(model, name, file):
    source = parsed_source(model)
    assert (source.name, source.file) == (name, file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"models_transport": "ftp"},
            "llamacpp_models_transport = ftp: must be one of auto, swarm, http, rsync",
        ),
        ({"models_quota": "much"}, "llamacpp_models_quota = much: must be a size, e.g. 32 GiB, or a number of bytes"),
        ({"models_fetcher": "node9"}, "llamacpp_models_fetcher = node9: write auto, controller, or a node of the"),
        ({"rpc_cache_dir": "/srv/cache"}, "llamacpp_rpc_cache_dir = /srv/cache: llama.cpp wants it to be called rpc;"),
        ({"rpc_cache": "on"}, "llamacpp_rpc_cache = on: write true or false, without quotes"),
    ],
)
def test_settings_of_models(settings, message):
    assert only(settings=settings).startswith(message)


def test_sizes_of_stores():
    assert accept(settings={"models_quota": "500 GiB"}).settings.models_quota == 500 << 30
    assert accept(settings={"models_quota": 0}).settings.models_quota == 0


def test_two_instances_of_one_model_share_it():
    accept(instance("a"), instance("b"))


def test_all_problems_are_reported_together():
    found = messages(
        instance(context=0, parallel=0, port=0), instance("b", nodes=["nowhere"], api_keys=[""]), release=""
    )
    assert len(found) == 6


def test_instances_with_problems_are_left_out():
    declared, _problems = declare(instance(context=0), instance("good"))
    assert [item.name for item in declared.instances] == ["good"]


def test_what_is_left_to_the_planner():
    words = {key: "auto" for key in ("nodes", "context", "parallel", "gpu_layers", "split_mode", "n_cpu_moe")}
    words.update({key: "auto" for key in ("batch", "ubatch", "cache_type_k", "cache_type_v")})
    (parsed,) = accept(instance(**words)).instances
    assert {getattr(parsed, key) for key in words} == {None}
    (parsed,) = accept(instance(nodes=None)).instances
    assert (parsed.nodes, parsed.head, parsed.among) == (None, None, None)


def test_a_head_may_get_workers():
    (parsed,) = accept(instance(nodes="auto", head="node2")).instances
    assert (parsed.nodes, parsed.head) == (None, "node2")


def test_replicas_choose_among_their_nodes():
    (parsed,) = accept(instance(replicas=2)).instances
    assert (parsed.nodes, parsed.among, parsed.replicas) == (None, ("node1", "node2", "node3"), 2)
    assert accept(instance(replicas="auto")).instances[0].replicas == 0


def test_a_repository_and_what_is_wanted_of_it():
    repo = {"repo": "owner/name", "quant": ["Q8_0", "Q6_K"], "revision": "v1"}
    (parsed,) = accept(instance(model=repo)).instances
    assert (parsed.model.repo, parsed.model.wanted, parsed.model.revision) == ("owner/name", ("Q8_0", "Q6_K"), "v1")
    assert accept(instance(model={"repo": "owner/name", "quant": "auto"})).instances[0].model.wanted == ()


def test_quantisations_that_lie_around():
    quants = {"Q8_0": {"path": "/srv/m-q8.gguf"}, "Q4_0": {"url": "https://h/m-q4.gguf", "sha256": SHA}}
    (parsed,) = accept(instance(model={"quants": quants, "quant": "auto"})).instances
    assert {name: source.where for name, source in parsed.model.quants.items()} == {
        "Q8_0": "/srv/m-q8.gguf",
        "Q4_0": "https://h/m-q4.gguf",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 0}, ".replicas = 0: must be at least 1 replica; write e.g. 2, or auto"),
        (
            {"replicas": 2, "head": "node1"},
            ".head = node1: each replica has a head of its own; list nodes to choose from",
        ),
        ({"replicas": 2, "name": "a" * 29}, ".name = %s: with replicas it has at most 28 characters" % ("a" * 29)),
        ({"devices": "CUDA0"}, ".devices = CUDA0: must be a list of devices as their node calls them"),
        ({"devices": ["CUDA0", "CUDA0"]}, '.devices = ["CUDA0", "CUDA0"]: names a device twice'),
        ({"min_context": 4096}, ".min_context = 4096: it bounds context: auto; write that, or leave it out"),
        ({"cpu_moe": True, "n_cpu_moe": 3}, ".n_cpu_moe = 3: cpu_moe keeps the experts of all layers on the CPU"),
        (
            {"nodes": "auto", "tensor_split": [1, 1]},
            ".tensor_split = [1.0, 1.0]: its shares follow the order of the nodes",
        ),
        (
            {"nodes": ["node1"], "split_mode": "tensor", "flash_attention": "off"},
            ".flash_attention = off: split_mode tensor needs it",
        ),
        (
            {"nodes": "auto", "model": {"path": "/m.gguf", "from": "node"}},
            ".model = (not set): a file of the head needs a head",
        ),
    ],
)
def test_what_does_not_go_together(change, message):
    assert only(instance(**change)).startswith("llamacpp_instances[0]" + message)


def test_a_name_that_a_replica_may_get():
    message = only(instance(replicas=2), instance("demo-2"))
    assert (
        message
        == "llamacpp_instances[1].name = demo-2: a replica of llamacpp_instances[0] may get this name; choose another"
    )
