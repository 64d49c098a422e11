#include "store/sigv4.h"

#include <gtest/gtest.h>

#include "base/hash.h"
#include "store/digests.h"

namespace tessera {
namespace {

// The examples of "Signature Calculations for the Authorization Header" in the S3 API reference.
Credentials ExampleCredentials() {
  Credentials credentials;
  credentials.access_key = Secret("AKIAIOSFODNN7EXAMPLE");
  credentials.secret_key = Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
  return credentials;
}

std::string SignatureOf(const std::string& authorization) {
  return authorization.substr(authorization.rfind('=') + 1);
}

TEST(SigV4Test, GetObjectExample) {
  const NameValues headers = {{"host", "examplebucket.s3.amazonaws.com"},
                              {"range", "bytes=0-9"},
                              {"x-amz-content-sha256", std::string(kEmptySha256)},
                              {"x-amz-date", "20130524T000000Z"}};
  const SigningInput input = {.method = "GET",
                              .encoded_path = "/test.txt",
                              .canonical_query = "",
                              .headers = &headers,
                              .payload_hash = kEmptySha256,
                              .amz_date = "20130524T000000Z",
                              .region = "us-east-1"};
  EXPECT_EQ(Sha256Hex(CanonicalRequest(input)),
            "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972");
  EXPECT_EQ(Authorization(input, ExampleCredentials()),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST(SigV4Test, PutObjectExample) {
  const std::string hash = Sha256Hex("Welcome to Amazon S3.");
  const NameValues headers = {{"x-amz-storage-class", "REDUCED_REDUNDANCY"},
                              {"date", "Fri, 24 May 2013 00:00:00 GMT"},
                              {"host", "examplebucket.s3.amazonaws.com"},
                              {"x-amz-content-sha256", hash},
                              {"x-amz-date", "20130524T000000Z"}};
  const std::string path = "/" + UriEncode("test$file.text", true);
  EXPECT_EQ(path, "/test%24file.text");
  const SigningInput input = {.method = "PUT",
                              .encoded_path = path,
                              .canonical_query = "",
                              .headers = &headers,
                              .payload_hash = hash,
                              .amz_date = "20130524T000000Z",
                              .region = "us-east-1"};
  EXPECT_EQ(SignatureOf(Authorization(input, ExampleCredentials())),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

TEST(SigV4Test, QueriesAreSortedAndEncoded) {
  const NameValues headers = {{"host", "examplebucket.s3.amazonaws.com"},
                              {"x-amz-content-sha256", std::string(kEmptySha256)},
                              {"x-amz-date", "20130524T000000Z"}};
  SigningInput input = {.method = "GET",
                        .encoded_path = "/",
                        .canonical_query = "lifecycle=",
                        .headers = &headers,
                        .payload_hash = kEmptySha256,
                        .amz_date = "20130524T000000Z",
                        .region = "us-east-1"};
  EXPECT_EQ(SignatureOf(Authorization(input, ExampleCredentials())),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
  const std::string query = CanonicalQuery({{"prefix", "J"}, {"max-keys", "2"}});
  EXPECT_EQ(query, "max-keys=2&prefix=J");
  input.canonical_query = query;
  EXPECT_EQ(SignatureOf(Authorization(input, ExampleCredentials())),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

TEST(SigV4Test, EncodesAllButUnreservedBytes) {
  EXPECT_EQ(UriEncode("a b+c%/d~e_f.g-h", true), "a%20b%2Bc%25/d~e_f.g-h");
  EXPECT_EQ(UriEncode("/", false), "%2F");
  EXPECT_EQ(UriEncode("\xc3\xa4//", true), "%C3%A4//");
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(UriDecode(UriEncode(all, false)), all);
  EXPECT_EQ(UriDecode("a+b%"), "a b%");
  EXPECT_EQ(CanonicalQuery({{"b", "x y"}, {"a", "/"}, {"b", "="}}), "a=%2F&b=%3D&b=x%20y");
}

TEST(SigV4Test, FormatsTheDate) { EXPECT_EQ(AmzDate(1369353600), "20130524T000000Z"); }

TEST(DigestsTest, HaveThePublishedValues) {
  // RFC 4231, test case 2; RFC 1321, appendix A.5; RFC 4648, section 10.
  EXPECT_EQ(Hex(HmacSha256("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(Hex(Md5("abc")), "900150983cd24fb0d6963f7d28e17f72");
  Md5Stream stream;
  stream.Update(std::as_bytes(std::span(std::string_view("a"))));
  stream.Update(std::as_bytes(std::span(std::string_view("bc"))));
  EXPECT_EQ(stream.FinishHex(), "900150983cd24fb0d6963f7d28e17f72");
  for (const auto& [raw, text] : std::vector<std::pair<std::string, std::string>>{
           {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}}) {
    EXPECT_EQ(Base64(raw), text);
    EXPECT_EQ(Base64Decode(text), raw);
  }
  EXPECT_EQ(Base64Decode("Zg="), std::nullopt);
  EXPECT_EQ(Base64Decode("Z?=="), std::nullopt);
  EXPECT_EQ(EncodeCrc32c(0xE3069283u), "4waSgw==");
  EXPECT_EQ(DecodeCrc32c("4waSgw=="), 0xE3069283u);
  EXPECT_EQ(DecodeCrc32c("4waSgw==-3"), std::nullopt);
}

}  // namespace
}  // namespace tessera
