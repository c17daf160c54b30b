"""What a derived header may hold: attribute keywords by information entity, and nothing else."""


def _keywords(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# PS3.3 C.7.1.1 and C.7.1.3 (trial subject), with the marks of de-identification.
PATIENT = _keywords(
    """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence
    PatientBirthDate PatientBirthTime PatientBirthDateInAlternativeCalendar
    PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar PatientSex OtherPatientIDs
    OtherPatientIDsSequence OtherPatientNames EthnicGroup EthnicGroupCodeSequence
    PatientComments QualityControlSubject SourcePatientGroupIdentificationSequence
    GroupOfPatientsIdentificationSequence PatientSpeciesDescription PatientSpeciesCodeSequence
    ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization ReferencedPatientSequence
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName
    IssuerOfClinicalTrialProtocolID OtherClinicalTrialProtocolIDsSequence ClinicalTrialSiteID
    ClinicalTrialSiteName IssuerOfClinicalTrialSiteID ClinicalTrialSubjectID
    IssuerOfClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    IssuerOfClinicalTrialSubjectReadingID ClinicalTrialProtocolEthicsCommitteeName
    ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    """
)
# PS3.3 C.7.2.1, C.7.2.2, C.7.2.3
STUDY = _keywords(
    """
    StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber
    IssuerOfAccessionNumberSequence ReferringPhysicianName
    ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence RequestingService RequestingServiceCodeSequence
    ReferencedStudySequence ProcedureCodeSequence ReasonForPerformedProcedureCodeSequence
    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize
    PatientSizeCodeSequence PatientWeight PatientBodyMassIndex MeasuredAPDimension
    MeasuredLateralDimension MedicalAlerts Allergies SmokingStatus PregnancyStatus
    LastMenstrualDate PatientState Occupation AdditionalPatientHistory AdmissionID
    IssuerOfAdmissionIDSequence ReasonForVisit ReasonForVisitCodeSequence ServiceEpisodeID
    IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription PatientSexNeutered
    ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialTimePointTypeCodeSequence LongitudinalTemporalOffsetFromEvent
    LongitudinalTemporalEventType ConsentForClinicalTrialUseSequence
    """
)
CHARACTER_SET = ("SpecificCharacterSet",)
PATIENT_AND_STUDY = (*PATIENT, *STUDY)
# The same place, order and body part; the equipment that made the images is the node.
SERIES = _keywords(
    """
    Modality Laterality BodyPartExamined ProtocolName PatientPosition AnatomicalOrientationType
    RequestAttributesSequence AnatomicRegionSequence TimezoneOffsetFromUTC
    LongitudinalTemporalInformationModified InstitutionName InstitutionAddress
    InstitutionalDepartmentName FrameOfReferenceUID PositionReferenceIndicator
    """
)
# Copied where the whole stack has one value (PS3.3 C.8.2.1).
UNIFORM = _keywords(
    """
    KVP ConvolutionKernel FilterType DataCollectionDiameter ReconstructionDiameter
    GantryDetectorTilt TableHeight RotationDirection AcquisitionNumber
    """
)
# Copied from the nearest received slice: the data really come from that acquisition.
ACQUISITION = _keywords(
    """
    AcquisitionDate AcquisitionTime AcquisitionDateTime AcquisitionUID IrradiationEventUID
    ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusRoute
    ContrastBolusAdministrationRouteSequence ContrastBolusVolume ContrastBolusStartTime
    ContrastBolusStopTime ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration
    ContrastBolusIngredient ContrastBolusIngredientConcentration
    """
)
# The pixel format, of the slice whose stored values are used (PS3.3 C.7.6.3, C.7.5.1.1.2).
PIXELS = _keywords(
    """
    PhotometricInterpretation Rows Columns BitsAllocated BitsStored PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit PixelSpacing RescaleIntercept RescaleSlope
    BurnedInAnnotation RecognizableVisualFeatures QualityControlImage LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod
    """
)
RESCALE = _keywords("RescaleIntercept RescaleSlope")
# How a contributing equipment is named (PS3.3 C.12.1).
SCANNER = _keywords(
    """
    Manufacturer InstitutionName InstitutionAddress StationName InstitutionalDepartmentName
    ManufacturerModelName DeviceSerialNumber SoftwareVersions
    """
)
# The window of the first slice, for all (PS3.3 C.11.2).
WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction")
