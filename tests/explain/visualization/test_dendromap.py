import html.parser
import json
import math

import keras
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import adjusted_rand_score

from kzoo.explain.visualization.cluster_tree import ClusterTree, cluster_tree
from kzoo.explain.visualization.dendromap import DendroMap, embed, underperforming_subgroups
from kzoo.explain.visualization.dendromap_figure import dendromap_figure
from kzoo.explain.visualization.dendromap_sprite import thumbnails_of

pytestmark = pytest.mark.paper(
    "DendroMap: Visual Exploration of Large-Scale Image Datasets for Machine Learning with Treemaps"
)

NASTY = "</script><b>&\"'\u2028"


def partition(tree, nodes):
    clusters = np.empty(tree.num_examples, int)
    for number, node in enumerate(nodes):
        clusters[tree.members(node)] = number
    return clusters


@pytest.fixture(scope="module")
def hierarchy():
    """2 super-groups of 3 groups of 4 subgroups of 10 points, and their numbers [n, 3]."""
    rng = np.random.default_rng(0)
    numbers = np.stack(np.unravel_index(np.arange(240) // 10, (2, 3, 4)), axis=1)
    axes = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    first, scale = [0, 2, 5], [40.0, 10.0, 2.5]
    one_hot = [axes[first[level] + numbers[:, level]] * scale[level] for level in range(3)]
    return sum(one_hot) + 0.1 * rng.normal(size=(240, 9)), numbers


@pytest.fixture(scope="module")
def planted():
    """300 images in three blobs; 20 of them, a blob of their own, have an accuracy of 0.2."""
    rng = np.random.default_rng(1)
    blob = np.repeat([0, 1, 2], [150, 130, 20])
    features = np.eye(3)[blob] * [[10], [10], [4]][0] + 0.3 * rng.normal(size=(300, 3))
    labels = np.minimum(blob, 1)
    predictions = labels.copy()
    predictions[280:296] = 0
    predictions[[3, 40, 200]] = 1 - labels[[3, 40, 200]]
    images = rng.integers(0, 256, size=(300, 6, 5, 3))
    names = [f"{NASTY} {i}" for i in range(300)]
    return DendroMap.from_features(
        features, images, labels=labels, predictions=predictions,
        class_names=["cat", NASTY], names=names,
    )  # fmt: skip


def test_cuts_are_those_of_scipy(rng):
    tree = cluster_tree(rng.normal(size=(80, 4)))
    for count in (1, 2, 5, 13, 80):
        nodes = tree.cut(count)
        expected = fcluster(tree.merges, count, "maxclust")
        assert len(nodes) == count
        assert adjusted_rand_score(expected, partition(tree, nodes)) == 1


def test_a_cut_below_a_node_stays_there(rng):
    tree = cluster_tree(rng.normal(size=(40, 4)))
    node = tree.children(tree.root)[1]
    members = np.concatenate([tree.members(each) for each in tree.cut(5, node)])
    np.testing.assert_array_equal(members, tree.members(node))
    assert len(tree.cut(1000, node)) == tree.size(node)
    assert tree.cut(3, root=7) == [7]


def test_levels_of_a_planted_hierarchy_are_found(hierarchy):
    features, numbers = hierarchy
    tree = cluster_tree(features)
    for count, levels in [(2, 1), (6, 2), (24, 3)]:
        truth = numbers[:, :levels] @ [100, 10, 1][:levels]
        assert adjusted_rand_score(truth, partition(tree, tree.cut(count))) == 1


def test_node_distances_are_ward_distances():
    """Merging {0, 1} at 0 and 1 with 4: sqrt(2 * 2 * 1 / 3) * |4 - 0.5|."""
    tree = cluster_tree([[0.0], [1.0], [4.0]])
    assert tree.distance(3) == pytest.approx(1.0)
    assert tree.distance(4) == pytest.approx(math.sqrt(4 / 3) * 3.5)
    assert tree.distance(2) == 0
    assert tree.children(2) == ()


def test_planted_subgroup_is_ranked_first(planted):
    first = underperforming_subgroups(planted)[0]
    np.testing.assert_array_equal(np.sort(planted.tree.members(first["node"])), range(280, 300))
    assert first["size"] == 20
    assert first["accuracy"] == pytest.approx(0.2)
    assert first["class_mix"] == {NASTY: 20}
    ways = sum(math.comb(20, k) * math.comb(280, 19 - k) for k in range(16, 20))
    assert first["log_probability"] == pytest.approx(math.log(ways / math.comb(300, 19)))


def test_subgroups_do_not_overlap_and_are_large_enough(planted):
    found = underperforming_subgroups(planted, count=50, min_size=2)
    members = np.concatenate([planted.tree.members(each["node"]) for each in found])
    assert len(set(members)) == len(members)
    assert min(each["size"] for each in found) >= 2
    assert all(each["error"] > 19 / 300 for each in found)
    assert len(found) > len(underperforming_subgroups(planted, min_size=2, count=1)) == 1


def test_annotations_add_up(planted):
    about = [planted.describe(node) for node in planted.tree.cut(9)]
    assert sum(each["size"] for each in about) == 300
    assert sum(each["size"] * each["error"] for each in about) == pytest.approx(19)
    assert sum(each["class_mix"].get("cat", 0) for each in about) == 150
    assert planted.describe(planted.tree.root)["class_mix"] == {"cat": 150, NASTY: 150}


def test_json_round_trip(planted):
    text = planted.to_json(num_clusters=3)
    again = DendroMap.from_json(text)
    assert again.to_json(num_clusters=3) == text
    np.testing.assert_array_equal(again.thumbnails, planted.thumbnails)
    contents = json.loads(text)
    assert contents["thumbnails"]["count"] == len(contents["names"]) == 300
    assert [each["size"] for each in contents["clusters"]] == [
        planted.tree.size(node) for node in planted.tree.cut(3)
    ]


class Page(html.parser.HTMLParser):
    """Collects elements; fails where they are not well nested."""

    EMPTY = ("meta", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_page_is_well_formed_self_contained_and_escaped(planted, tmp_path):
    planted.save_html(tmp_path / "map.html", title=f"Errors {NASTY}", num_clusters=5)
    page = Page((tmp_path / "map.html").read_text("utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
    assert "".join(page.texts["title"]) == f"Errors {NASTY}"
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert "b" not in tags
    assert not {"src", "href", "onclick", "style"} & {key for _, a in page.elements for key in a}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    data = json.loads(page.texts["script"][0])
    assert data["names"][7] == f"{NASTY} 7"
    assert data["subgroups"] == underperforming_subgroups(planted)
    assert data["thumbnails"]["sprite"].startswith("data:image/png;base64,")
    inputs = [attributes for tag, attributes in page.elements if tag == "input"]
    assert inputs[0]["value"] == "5"


def test_features_come_from_any_layer(rng):
    model = keras.Sequential(
        [
            keras.Input([6, 6, 1]),
            keras.layers.Conv2D(3, 3, name="maps"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="hidden"),
            keras.layers.Dense(2),
        ]
    )
    images = rng.uniform(size=(9, 6, 6, 1)).astype("float32")
    hidden = keras.Model(model.inputs[0], model.get_layer("hidden").output)
    np.testing.assert_allclose(embed(model, images, batch_size=4), hidden(images), atol=1e-6)
    maps = keras.Model(model.inputs[0], model.get_layer("maps").output)(images)
    np.testing.assert_allclose(embed(model, images, "maps"), np.mean(maps, (1, 2)), atol=1e-6)
    dendromap = DendroMap.from_model(model, images, labels=np.zeros(9, int), batch_size=4)
    np.testing.assert_array_equal(dendromap.predictions, np.argmax(model(images), -1))
    np.testing.assert_array_equal(dendromap.tree.merges, cluster_tree(hidden(images)).merges)
    assert dendromap.thumbnails.shape == (9, 6, 6, 1)


def test_thumbnails_are_means_of_what_they_cover():
    images = np.zeros([2, 64, 32], "uint8")
    images[0, :32] = 200
    small = thumbnails_of(images, 4)
    np.testing.assert_array_equal(small[0, ..., 0], [[200, 200], [200, 200], [0, 0], [0, 0]])
    np.testing.assert_array_equal(
        thumbnails_of(np.array([[[-1.0, 1.0]], [[0.0, 3.0]]]), 8)[..., 0], [[[0, 128]], [[64, 255]]]
    )


def test_figure_shows_a_thumbnail_for_every_image_that_fits(planted):
    figure = dendromap_figure(planted, num_clusters=2, size=(20, 20), thumbnail=8.0)
    assert len(figure.axes[0].images) == 300


def test_maps_without_labels_know_no_errors(planted):
    dendromap = DendroMap(planted.tree, planted.thumbnails)
    assert dendromap.describe(5)["accuracy"] is None
    assert dendromap.describe(5)["class_mix"] is None
    with pytest.raises(ValueError, match="`dendromap` must have labels and predictions"):
        underperforming_subgroups(dendromap)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thumbnails": np.zeros([300, 4, 4, 3])}, "`thumbnails` must be uint8"),
        ({"thumbnails": np.zeros([2, 4, 4, 3], "uint8")}, "`thumbnails` must have one entry"),
        ({"labels": np.zeros(299, int)}, "`labels` must have one entry"),
        ({"labels": np.full(300, -1)}, "`labels` must be class indices"),
        ({"predictions": np.zeros(300)}, "`predictions` must be class indices"),
        ({"labels": np.full(300, 2), "class_names": ["a", "b"]}, "`class_names` must be 3"),
        ({"names": ["a"]}, "`names` must have one entry"),
    ],
)
def test_refuses_what_does_not_fit_the_tree(planted, changes, message):
    with pytest.raises(ValueError, match=message):
        DendroMap(planted.tree, **{"thumbnails": planted.thumbnails, **changes})


def test_refuses_what_is_no_tree():
    with pytest.raises(ValueError, match="`merges` must be a linkage matrix"):
        ClusterTree(np.zeros([0, 4]))
    with pytest.raises(ValueError, match="`merges` must merge every node once"):
        ClusterTree([[0, 1, 1.0, 2], [0, 2, 2.0, 3]])
    with pytest.raises(ValueError, match="sorted by distance"):
        ClusterTree([[0, 1, 2.0, 2], [3, 2, 1.0, 3]])
    with pytest.raises(ValueError, match="`features` must be finite"):
        cluster_tree([[0.0], [float("nan")]])
    with pytest.raises(ValueError, match="`method` must have distances"):
        cluster_tree([[0.0], [1.0]], "centroid")
    with pytest.raises(ValueError, match="`node` must be from 0 to 2"):
        cluster_tree([[0.0], [1.0]]).children(3)
    with pytest.raises(ValueError, match='"format"'):
        DendroMap.from_json("[]")
