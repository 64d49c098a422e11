#include "store/s3_xml.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(S3XmlTest, ReadsErrors) {
  const S3ErrorBody error = ParseS3Error(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code>"
      "<Message>The key &lt;x&gt;\ndoes not exist</Message><RequestId>4442587FB7D0A2F9</RequestId></Error>");
  EXPECT_EQ(error.code, "NoSuchKey");
  EXPECT_EQ(error.message, "The key <x> does not exist");
  EXPECT_EQ(error.request_id, "4442587FB7D0A2F9");
  for (const char* text : {"", "<html>Bad gateway</html>", "<Error>", "no xml", "<a:Error xmlns:a='x'/>"}) {
    EXPECT_EQ(ParseS3Error(text).code, "") << text;
  }
  EXPECT_EQ(ParseS3Error("<Error><Code>A</Code><Message>" + std::string(100'000, 'x') + "</Message></Error>")
                .message.size(),
            503u);
}

TEST(S3XmlTest, OwnEntitiesAreNotExpanded) {
  const S3ErrorBody error = ParseS3Error(
      "<!DOCTYPE Error [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><Error><Code>&e;</Code></Error>");
  EXPECT_EQ(error.code.find("root:"), std::string::npos);
}

TEST(S3XmlTest, ReadsPagesOfObjects) {
  const char* xml =
      "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><EncodingType>url</EncodingType>"
      "<IsTruncated>true</IsTruncated><NextContinuationToken>tok&amp;en</NextContinuationToken>"
      "<Contents><Key>base/a+b%2Bc</Key><LastModified>2024-02-29T12:00:00.000Z</LastModified>"
      "<ETag>&quot;abc&quot;</ETag><Size>5000000000</Size></Contents>"
      "<CommonPrefixes><Prefix>base/sub/</Prefix></CommonPrefixes></ListBucketResult>";
  const auto page = ParseListPage(xml, "base/");
  ASSERT_TRUE(page.ok()) << page.error().message;
  ASSERT_EQ(page->objects.size(), 1u);
  EXPECT_EQ(page->objects[0].key, "a b+c");
  EXPECT_EQ(page->objects[0].bytes, 5'000'000'000);
  EXPECT_EQ(page->objects[0].etag, "abc");
  EXPECT_EQ(page->objects[0].modified_unix_s, 1709208000);
  EXPECT_EQ(page->folders, std::vector<std::string>{"sub/"});
  EXPECT_EQ(page->next_page, "tok&en");
  EXPECT_FALSE(ParseListPage(xml, "other/").ok());
  EXPECT_FALSE(ParseListPage("<Error/>", "").ok());
  EXPECT_FALSE(ParseListPage("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", "").ok());
  EXPECT_FALSE(
      ParseListPage("<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>", "").ok());
}

TEST(S3XmlTest, ACompletionMayHoldAnError) {
  EXPECT_EQ(ParseCompletedUpload("<CompleteMultipartUploadResult><ETag>\"x-2\"</ETag></CompleteMultipartUploadResult>")
                ->etag,
            "x-2");
  EXPECT_EQ(ParseCompletedUpload("<Error><Code>SlowDown</Code></Error>")->error.code, "SlowDown");
  EXPECT_EQ(ParseCompletedUpload("<Error></Error>")->error.code, "InternalError");
  EXPECT_FALSE(ParseCompletedUpload("").ok());
  EXPECT_EQ(CompleteUploadXml({{.number = 1, .etag = "a<", .crc32c = ""}, {.number = 2, .etag = "b", .crc32c = "AAAA"}}),
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
            "<Part><PartNumber>1</PartNumber><ETag>\"a&lt;\"</ETag></Part>"
            "<Part><PartNumber>2</PartNumber><ETag>\"b\"</ETag><ChecksumCRC32C>AAAA</ChecksumCRC32C></Part>"
            "</CompleteMultipartUpload>");
  EXPECT_EQ(*ParseUploadId("<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"), "u");
  EXPECT_FALSE(ParseUploadId("<InitiateMultipartUploadResult/>").ok());
}

TEST(S3XmlTest, ReadsAssumedRoles) {
  const auto role = ParseAssumedRole(
      "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
      "<AccessKeyId>a</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
      "<Expiration>2024-02-29T12:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
      "</AssumeRoleWithWebIdentityResponse>",
      "role");
  ASSERT_TRUE(role.ok());
  EXPECT_EQ(role->session_token.Reveal(), "t");
  EXPECT_EQ(role->expires_unix_s, 1709208000);
  EXPECT_FALSE(ParseAssumedRole("<x/>", "role").ok());
}

}  // namespace
}  // namespace tessera
