"""The attributes that a derived CT slice may have; written down apart from the product's list."""

# What may stand in a derived CT header (docs: derived-objects, section 1), by keyword.
ALLOWED = frozenset(
    """
    SpecificCharacterSet ImageType InstanceCreationDate InstanceCreationTime InstanceCreatorUID
    SOPClassUID SOPInstanceUID SyntheticData StudyDate SeriesDate AcquisitionDate ContentDate
    AcquisitionDateTime StudyTime SeriesTime AcquisitionTime ContentTime AccessionNumber
    IssuerOfAccessionNumberSequence Modality Manufacturer InstitutionName InstitutionAddress
    ReferringPhysicianName ReferringPhysicianIdentificationSequence TimezoneOffsetFromUTC
    StationName StudyDescription ProcedureCodeSequence SeriesDescription
    InstitutionalDepartmentName PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
    NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence
    ConsultingPhysicianName ConsultingPhysicianIdentificationSequence AdmittingDiagnosesDescription
    AdmittingDiagnosesCodeSequence ManufacturerModelName ReferencedStudySequence
    ReferencedPatientSequence ReferencedSeriesSequence AnatomicRegionSequence RelatedSeriesSequence
    DerivationDescription SourceImageSequence AcquisitionUID IrradiationEventUID
    DerivationCodeSequence PatientName PatientID IssuerOfPatientID TypeOfPatientID
    IssuerOfPatientIDQualifiersSequence PatientBirthDate PatientBirthTime PatientSex
    PatientAlternativeCalendar PatientBirthDateInAlternativeCalendar OtherPatientIDs
    OtherPatientIDsSequence OtherPatientNames PatientAge PatientSize PatientSizeCodeSequence
    PatientBodyMassIndex PatientWeight MedicalAlerts Allergies EthnicGroup EthnicGroupCodeSequence
    Occupation SmokingStatus AdditionalPatientHistory PregnancyStatus LastMenstrualDate
    PatientSexNeutered ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientComments QualityControlSubject PatientSpeciesDescription PatientSpeciesCodeSequence
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID
    ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    ConsentForClinicalTrialUseSequence LongitudinalTemporalOffsetFromEvent
    LongitudinalTemporalEventType LongitudinalTemporalInformationModified
    ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusAdministrationRouteSequence
    BodyPartExamined SliceThickness KVP SpacingBetweenSlices DataCollectionDiameter SoftwareVersions
    ProtocolName ContrastBolusRoute ContrastBolusVolume ContrastBolusStartTime ContrastBolusStopTime
    ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration ContrastBolusIngredient
    ContrastBolusIngredientConcentration ReconstructionDiameter GantryDetectorTilt TableHeight
    RotationDirection FilterType ConvolutionKernel PatientPosition ContentQualification
    ContributingEquipmentSequence StudyInstanceUID SeriesInstanceUID StudyID SeriesNumber
    AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient
    FrameOfReferenceUID Laterality PositionReferenceIndicator SliceLocation ImageComments
    SamplesPerPixel PhotometricInterpretation Rows Columns PixelSpacing BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit QualityControlImage
    BurnedInAnnotation RecognizableVisualFeatures WindowCenter WindowWidth RescaleIntercept
    RescaleSlope RescaleType WindowCenterWidthExplanation VOILUTFunction LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod RequestAttributesSequence
    RequestingService RequestingServiceCodeSequence ReasonForPerformedProcedureCodeSequence
    ReasonForVisit ReasonForVisitCodeSequence AdmissionID IssuerOfAdmissionIDSequence
    ServiceEpisodeID IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription PatientState
    AnatomicalOrientationType PixelData
    """.split()  # noqa: SIM905  (a page of quoted words is harder to read)
)
