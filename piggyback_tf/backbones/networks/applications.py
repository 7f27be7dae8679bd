"""Every classification network of `keras.applications`, without its classifier."""

import functools
import warnings
from typing import TYPE_CHECKING

from piggyback_tf.backbones.registry import register_backbone
from piggyback_tf.backbones.scaling import Scaling

if TYPE_CHECKING:
    import keras

_TF, _TORCH, _CAFFE = map(Scaling.before, ("tf", "torch", "caffe"))
_INSIDE_MEAN = Scaling.inside("x / 255, then mean and variance")
_INSIDE_TF = Scaling.inside("x / 127.5 - 1")
_INSIDE_128 = Scaling.inside("x / 128 - 1")

# Family: scaling, smallest image size, and for each network its constructor and default image size.
_FAMILIES = {
    "convnext": (
        _INSIDE_MEAN,
        32,
        {
            "convnext_tiny": ("ConvNeXtTiny", 224),
            "convnext_small": ("ConvNeXtSmall", 224),
            "convnext_base": ("ConvNeXtBase", 224),
            "convnext_large": ("ConvNeXtLarge", 224),
            "convnext_xlarge": ("ConvNeXtXLarge", 224),
        },
    ),
    "densenet": (
        _TORCH,
        32,
        {
            "densenet121": ("DenseNet121", 224),
            "densenet169": ("DenseNet169", 224),
            "densenet201": ("DenseNet201", 224),
        },
    ),
    "efficientnet": (
        _INSIDE_MEAN,
        32,
        {
            "efficientnet_b0": ("EfficientNetB0", 224),
            "efficientnet_b1": ("EfficientNetB1", 240),
            "efficientnet_b2": ("EfficientNetB2", 260),
            "efficientnet_b3": ("EfficientNetB3", 300),
            "efficientnet_b4": ("EfficientNetB4", 380),
            "efficientnet_b5": ("EfficientNetB5", 456),
            "efficientnet_b6": ("EfficientNetB6", 528),
            "efficientnet_b7": ("EfficientNetB7", 600),
        },
    ),
    "efficientnet_v2_b": (
        _INSIDE_MEAN,
        32,
        {
            "efficientnet_v2_b0": ("EfficientNetV2B0", 224),
            "efficientnet_v2_b1": ("EfficientNetV2B1", 240),
            "efficientnet_v2_b2": ("EfficientNetV2B2", 260),
            "efficientnet_v2_b3": ("EfficientNetV2B3", 300),
        },
    ),
    "efficientnet_v2": (
        _INSIDE_128,
        32,
        {
            "efficientnet_v2_s": ("EfficientNetV2S", 384),
            "efficientnet_v2_m": ("EfficientNetV2M", 480),
            "efficientnet_v2_l": ("EfficientNetV2L", 480),
        },
    ),
    "inception_resnet_v2": (_TF, 75, {"inception_resnet_v2": ("InceptionResNetV2", 299)}),
    "inception_v3": (_TF, 75, {"inception_v3": ("InceptionV3", 299)}),
    "mobilenet": (_TF, 32, {"mobilenet": ("MobileNet", 224)}),
    "mobilenet_v2": (_TF, 32, {"mobilenet_v2": ("MobileNetV2", 224)}),
    "mobilenet_v3": (
        _INSIDE_TF,
        32,
        {
            "mobilenet_v3_small": ("MobileNetV3Small", 224),
            "mobilenet_v3_large": ("MobileNetV3Large", 224),
        },
    ),
    "nasnet": (_TF, 32, {"nasnet_mobile": ("NASNetMobile", 224), "nasnet_large": ("NASNetLarge", 331)}),
    "resnet": (
        _CAFFE,
        32,
        {"resnet50": ("ResNet50", 224), "resnet101": ("ResNet101", 224), "resnet152": ("ResNet152", 224)},
    ),
    "resnet_v2": (
        _TF,
        32,
        {
            "resnet50_v2": ("ResNet50V2", 224),
            "resnet101_v2": ("ResNet101V2", 224),
            "resnet152_v2": ("ResNet152V2", 224),
        },
    ),
    "vgg_notop": (_CAFFE, 32, {"vgg16_notop": ("VGG16", 224), "vgg19_notop": ("VGG19", 224)}),
    "xception": (_TF, 71, {"xception": ("Xception", 299)}),
}

_VGG_SIZE = 224
# Each cell of NASNet reads the two before it, so that some path goes around every cell but the last. These are the last
# cells of strides 4, 8 and 16.
_ENDPOINTS = {
    "nasnet_mobile": ("reduction_concat_stem_1", "normal_concat_3", "normal_concat_8"),
    "nasnet_large": ("reduction_concat_stem_1", "normal_concat_5", "normal_concat_12"),
}


def build_application(
    image_size: int, published: str | None = None, *, name: str, constructor: str, scaling: Scaling
) -> "keras.Model":
    """Returns a network of `keras.applications` with its own preprocessing, ending in average pooling.

    Args:
        image_size: Height and width of the images.
        published: None, `"imagenet"` or the path of a published `.h5` file.
        name: Name of the model.
        constructor: Name of the function in `keras.applications`.
        scaling: How the network scales images; says whether a layer goes before it.
    """
    import keras

    images, x = _images(image_size, scaling)
    with warnings.catch_warnings():
        # MobileNets say that the published weights are for other sizes, as they are for every image size here.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined")
        network = getattr(keras.applications, constructor)(
            include_top=False,
            weights=published,
            input_tensor=x,
            input_shape=(image_size, image_size, 3),
            pooling="avg",
        )
    # Rebuilt over the same layers: some constructors make a model that expects a list of one input.
    model = keras.Model(images, network.output, name=name)
    if constructor.startswith("EfficientNetB") and published != "imagenet":
        return _with_imagenet_scaling(model, keep_weights=published is not None)
    return model


def build_vgg(image_size: int, published: str | None = None, *, name: str, constructor: str) -> "keras.Model":
    """Returns a VGG network with fc1 and fc2, each followed by dropout of 0.5, as the Piggyback paper masks it.

    Args:
        image_size: Height and width of the images, 224.
        published: None, `"imagenet"` or the path of a published `.h5` file with the classifier.
        name: Name of the model.
        constructor: Name of the function in `keras.applications`.
    """
    import keras

    images, x = _images(image_size, _CAFFE)
    build = getattr(keras.applications, constructor)
    network = build(include_top=False, weights=None, input_tensor=x, input_shape=(image_size, image_size, 3))
    x = keras.layers.Flatten(name="flatten")(network.output)
    for layer in ("fc1", "fc2"):
        x = keras.layers.Dense(4096, activation="relu", name=layer)(x)
        x = keras.layers.Dropout(0.5, name=f"{layer}_dropout")(x)
    model = keras.Model(images, x, name=name)
    if published is not None:
        from piggyback_tf.backbones.paths import copy_weights

        # The published file belongs to the network with its classifier, which is then left behind.
        copy_weights(build(include_top=True, weights=published), model)
    return model


def _images(image_size: int, scaling: Scaling):
    import keras

    from piggyback_tf.backbones.preprocessing import preprocess_images

    images = keras.Input((image_size, image_size, 3), dtype="float32", name="images")
    return images, images if scaling.mode is None else preprocess_images(images, scaling.mode)


def _with_imagenet_scaling(model: "keras.Model", keep_weights: bool) -> "keras.Model":
    # Keras gives EfficientNet B0 to B7 one more scaling layer, but only if the constructor loads the ImageNet weights;
    # the same weights from a file would then mean something else. Here the layer is always there.
    import keras

    deviations = (0.229, 0.224, 0.225)

    def call(layer, *args, **kwargs):
        x = layer(*args, **kwargs)
        if isinstance(layer, keras.layers.Normalization):
            x = keras.layers.Rescaling([deviation**-0.5 for deviation in deviations])(x)
        return x

    copy = keras.models.clone_model(model, call_function=call)
    if keep_weights:
        from piggyback_tf.backbones.paths import copy_weights

        copy_weights(model, copy)
    return copy


for _family, (_scaling, _min_size, _networks) in _FAMILIES.items():
    for _name, (_constructor, _image_size) in _networks.items():
        register_backbone(
            _name,
            family=_family,
            image_size=_image_size,
            min_size=_min_size,
            preprocessing=_scaling.description,
            endpoints=_ENDPOINTS.get(_name, ()),
        )(functools.partial(build_application, name=_name, constructor=_constructor, scaling=_scaling))

for _name, _constructor in (("vgg16", "VGG16"), ("vgg19", "VGG19")):
    register_backbone(
        _name,
        family="vgg",
        image_size=_VGG_SIZE,
        min_size=_VGG_SIZE,
        max_size=_VGG_SIZE,
        preprocessing=_CAFFE.description,
        size_hint=f"Its fully connected layers fix the size; use '{_name}_notop' for other sizes.",
    )(functools.partial(build_vgg, name=_name, constructor=_constructor))
