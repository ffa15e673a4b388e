"""MuscleFromHead: measures the radiodensity of muscles in a CT, which a head MRI is asked to predict."""

from typing import Union

import numpy as np
import slicer
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.nodes import table_node, volume_from_node
from RefaceRiskLib.bridge.panel import Panel
from RefaceRiskLib.errors import RefaceRiskError


class MuscleFromHead(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Muscle From Head")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        parent.dependencies = ["RefaceRisk"]
        parent.contributors = ["The MRIRefaceRisk developers"]
        parent.helpText = _(
            "Measures the radiodensity of segmented muscles in a CT: mean, median and standard deviation in "
            "Hounsfield units, area, and the share of low attenuation that fat in the muscle leaves behind."
        )
        parent.acknowledgementText = _(
            "Makes the experiments of Gao et al., Comput. Biol. Med. 197 (2025) 111112, repeatable."
        )


@parameterNodeWrapper
class MuscleFromHeadParameterNode:
    """
    ctVolume - A CT in Hounsfield units.
    muscles - A segmentation or a label map on it.
    radiodensity - The table of the latest run.
    """

    ctVolume: vtkMRMLScalarVolumeNode
    # Union and not |: Slicer's selector takes its node types from the annotation and knows no other spelling.
    muscles: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007
    radiodensity: vtkMRMLTableNode


class MuscleFromHeadWidget(Panel):
    def makeLogic(self) -> "MuscleFromHeadLogic":
        return MuscleFromHeadLogic()

    def parametersChanged(self) -> None:
        self.showTable(self.ui.radiodensityTable, self._parameterNode.radiodensity)

    def whyNotApply(self) -> str:
        if not self._parameterNode.ctVolume:
            return _("Choose a CT")
        if not self._parameterNode.muscles:
            return _("Choose a segmentation or a label map of muscles")
        return ""

    def apply(self) -> None:
        # Counting voxels takes a second or two: a wait cursor is enough.
        with slicer.util.WaitCursor():
            table = self.logic.measure(self._parameterNode.ctVolume, self._parameterNode.muscles)
        self._parameterNode.radiodensity = table
        self.showEnd(None)


class MuscleFromHeadLogic(ScriptedLoadableModuleLogic):
    """Measures muscles: `slicer.util.getModuleLogic("MuscleFromHead").measure(ct, segmentation)`."""

    def getParameterNode(self) -> MuscleFromHeadParameterNode:
        return MuscleFromHeadParameterNode(super().getParameterNode())

    def measure(self, ct, muscles) -> vtkMRMLTableNode:
        """A table node with one row a muscle.

        :param ct: volume node in Hounsfield units
        :param muscles: segmentation node or label map node
        :raises RefaceRiskError: when the CT is not in Hounsfield units or nothing is labelled
        """
        from RefaceRiskLib.radiodensity.ct import measure_muscles

        image = volume_from_node(ct)
        if muscles.IsA("vtkMRMLSegmentationNode"):
            found = [
                measurement
                for number, (name, voxels) in enumerate(segmentArrays(muscles, ct).items(), start=1)
                for measurement in measure_muscles(
                    image, image.with_intensities(voxels * number, dtype=np.int16), names={number: name}
                )
            ]
        else:
            found = measure_muscles(image, volume_from_node(muscles), names=colorNames(muscles))
        columns = {
            _("label"): [row.label for row in found],
            _("muscle"): [row.site for row in found],
            _("mean HU"): [round(row.mean_hu, 2) for row in found],
            _("median HU"): [round(row.median_hu, 2) for row in found],
            _("SD HU"): [round(row.sd_hu, 2) for row in found],
            _("area mm²"): [round(row.area_mm2, 1) for row in found],
            _("low-attenuation share"): [round(row.low_attenuation_share, 4) for row in found],
        }
        return table_node(_("{name} radiodensity").format(name=ct.GetName()), columns)


def segmentArrays(segmentation, ct) -> dict[str, np.ndarray]:
    """Name -> (I, J, K) mask on the CT's grid; segments may overlap, empty ones are left out."""
    arrays = {}
    for identifier in segmentation.GetSegmentation().GetSegmentIDs():
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, identifier, ct).transpose(2, 1, 0)
        if voxels.any():
            arrays[segmentation.GetSegmentation().GetSegment(identifier).GetName()] = voxels > 0
    if not arrays:
        raise RefaceRiskError("the segmentation is empty on this CT", "segment a muscle first", segmentation.GetName())
    return arrays


def colorNames(labelmap) -> dict[int, str]:
    """Label -> name, from the colour table of a label map; empty where it has none."""
    display = labelmap.GetDisplayNode()
    colors = display.GetColorNode() if display else None
    if colors is None:
        return {}
    return {number: colors.GetColorName(number) for number in range(colors.GetNumberOfColors())}


class MuscleFromHeadTest(ScriptedLoadableModuleTest):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        for test in (self.test_label_map_and_segmentation_agree, self.test_ct_without_intercept_is_refused):
            self.setUp()
            test()

    def test_label_map_and_segmentation_agree(self) -> None:
        ct, labels = self.ctWithOneMuscle()
        table = MuscleFromHeadLogic().measure(ct, labels)
        self.assertEqual(table.GetNumberOfRows(), 1)
        self.assertEqual(table.GetTable().GetValue(0, 2).ToDouble(), 45.0)

        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
        again = MuscleFromHeadLogic().measure(ct, segmentation)
        for column in (2, 3, 4, 5, 6):
            self.assertEqual(
                again.GetTable().GetValue(0, column).ToDouble(),
                table.GetTable().GetValue(0, column).ToDouble(),
            )

    def test_ct_without_intercept_is_refused(self) -> None:
        ct, labels = self.ctWithOneMuscle()
        slicer.util.updateVolumeFromArray(ct, slicer.util.arrayFromVolume(ct) + 1024)
        with self.assertRaises(RefaceRiskError):
            MuscleFromHeadLogic().measure(ct, labels)

    def ctWithOneMuscle(self):
        hu = np.full((12, 30, 30), -1000, np.int16)
        hu[:, 5:25, 5:25] = -90
        hu[:, 10:20, 10:20] = 45
        labels = slicer.util.addVolumeFromArray(
            (hu == 45).astype(np.int16), name="muscle", nodeClassName="vtkMRMLLabelMapVolumeNode"
        )
        return slicer.util.addVolumeFromArray(hu, name="CT"), labels
