"""PEFT methods that PEFT lacks, registered so that all of PEFT works with them."""

from holdfast.adapters.bottleneck import BottleneckConfig
from holdfast.adapters.bottleneck_model import BottleneckModel
from holdfast.adapters.conv_adapter import ConvAdapterConfig
from holdfast.adapters.conv_model import ConvAdapterModel
from holdfast.adapters.defaults import fill_in
from holdfast.adapters.registration import register

register("CONVADAPTER", ConvAdapterConfig, ConvAdapterModel, ConvAdapterModel.prefix)
register("BOTTLENECK", BottleneckConfig, BottleneckModel, BottleneckModel.prefix)
fill_in()
